"""What a trial may draw: Hydra's grammar, settings that stand under a value, what is typed."""

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from experiments.space import (
    Choice,
    Interval,
    composed,
    draw,
    examples,
    refusal,
    restricted,
    setting,
    space,
    words_of,
)
from sigma.errors import UserError
from sigma.runs.files import CONF
from tests.runs.front_door import ROOT

optuna = pytest.importorskip("optuna", reason="pip install -e '.[optuna]' brings the search")

MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
WRITTEN: Any = OmegaConf.to_container(OmegaConf.load(CONF / "search.yaml"))
CONTENT = {
    "lr": "interval(0,1)",
    "flip": {
        "true": {"batch": "choice(5,6)", "r": "int(interval(1,3))"},
        "false": {"objective": {"one": {"batch": "choice(5,6)"}, "all": {"batch": "choice(1,2)"}}},
    },
}


def typed(*words: str) -> dict[str, Any]:
    return {o.get_key_element(): o for o in OverridesParser.create().parse_overrides(list(words))}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("interval(0,1)", Interval(0.0, 1.0)),
        ("tag(log,interval(1e-3,1))", Interval(0.001, 1.0, log=True)),
        ("int(tag(log,interval(1,5)))", Interval(1, 5, log=True)),
        ("1,a,null", Choice({"1": {}, "a": {}, "null": {}})),
        ("choice(true,false)", Choice({"true": {}, "false": {}})),
        ("[1,2],[3]", Choice({"[1,2]": {}, "[3]": {}})),
    ],
)
def test_what_hydras_grammar_draws(written: str, expected: Any) -> None:
    result = setting(typed(f"key={written}")["key"])
    assert result == expected
    if isinstance(expected, Interval):
        assert type(result.low) is type(expected.low)  # whole numbers are drawn whole


@pytest.mark.parametrize("written", ["interval(2,1)", "tag(log,interval(0,1))"])
def test_an_interval_without_numbers(written: str) -> None:
    with pytest.raises(UserError, match="Cannot draw from key="):
        setting(typed(f"key={written}")["key"])


def test_what_stands_under_a_value_is_drawn_with_it_alone() -> None:
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    batches: dict[str, set[str]] = {"flip": set(), "one": set(), "all": set()}
    for _ in range(60):
        trial = study.ask()
        drawn = draw(space(CONTENT, {}), trial)
        flips = drawn["flip"] == "true"
        keys = {"lr", "flip", "batch", "r" if flips else "objective"}
        assert drawn.keys() == keys
        assert len(trial.params) == len(keys)  # each has a name of its own
        batches["flip" if flips else str(drawn["objective"])].add(str(drawn["batch"]))
        study.tell(trial, drawn["lr"])
    assert batches == {"flip": {"5", "6"}, "one": {"5", "6"}, "all": {"1", "2"}}


@pytest.mark.parametrize(
    ("words", "drawn"),
    [
        (["flip=true"], [{"lr", "batch", "r"}]),
        (["flip=false"], [{"lr", "objective", "batch"}] * 2),
        (["objective=all"], [{"lr", "flip", "batch", "r"}, {"lr", "flip", "batch"}]),
        (["flip=false", "objective=all", "lr=1"], [{"batch"}]),
        (["flip=false", "objective=cloze"], [{"lr"}]),
        (["batch=3", "flip=choice(false)"], [{"lr", "flip", "objective"}]),
        (["flip=true", "new=interval(0,1)", "old=2"], [{"lr", "batch", "r", "new"}]),
    ],
)
def test_what_is_typed_takes_the_place_of_its_key(words: list[str], drawn: list[set[str]]) -> None:
    assert [set(settings) for settings in examples(space(CONTENT, typed(*words)))] == drawn


def test_a_choice_that_is_typed_holds_under_every_value() -> None:
    batches = {d["batch"] for d in examples(space(CONTENT, typed("batch=choice(8,9)")))}
    assert batches == {"8"}


def test_what_does_not_go_with_what_is_typed_is_not_drawn() -> None:
    """As a flip with all positions: every example of it is refused."""
    no_flip = {"true": "flips", "false": ""}
    drawn = restricted(
        space(CONTENT, typed("objective=all", "batch=1")), lambda s: no_flip[str(s["flip"])]
    )
    assert [set(settings) for settings in examples(drawn)] == [{"lr", "flip"}]
    entire = space(CONTENT, {})
    assert restricted(entire, lambda s: "one" * (s.get("objective") == "one")) == entire
    with pytest.raises(UserError, match="never"):
        restricted(entire, lambda settings: "never")


@pytest.mark.parametrize("model", [m for m in MODELS if m != "popularity"])  # has no settings
def test_every_model_has_a_space_of_its_own_keys(model: str) -> None:
    config = composed([f"model={model}"])

    def check(part: dict[str, Any]) -> None:
        for key, values in part.items():
            if "." in key:
                now = OmegaConf.select(config, key, throw_on_missing=True)
                none = key in ("model.normalize", "model.temperature")  # of products
                assert now is not None or (none and key.partition(".")[2] in config.model), key
            if isinstance(values, Interval):
                assert values.low < values.high, key
            else:
                assert len(values.branches) > 1, key
                for branch in values.branches.values():
                    check(branch)

    drawn = space(WRITTEN[model], {})
    assert drawn
    check(drawn)


@pytest.mark.parametrize("model", ["sigma", "sasrec", "mamba4rec", "gru4rec"])
def test_every_objective_that_is_drawn_can_train_its_model(model: str) -> None:
    objectives = set()
    for settings in examples(space(WRITTEN[model], {})):
        words = [f"model={model}", *words_of(settings)]
        assert refusal(words) == ""
        objectives.add(settings.get("objective", "next_item"))
        if settings.get("model.partial_flip") == "true":  # sees what comes later
            assert "not causal" in refusal([*words, "objective=all_positions"])
    assert objectives == {"next_item", "all_positions"}

"""RecBole's SASRec for a while: run by ``models --recbole`` in RecBole's environment.

    python recbole_sasrec.py FOLDER BATCH_SIZE MAX_LENGTH DEVICE SECONDS

FOLDER holds ``peer/peer.inter``. The settings are those the SIGMA authors ran (RecBole 1.2.1): 2
layers, 8 heads, cross entropy over all items, dropout 0.3. Prints one line of JSON.
"""

import json
import logging
import resource
import sys
import time
from typing import Any

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed

SETTINGS: dict[str, Any] = {
    **{"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp"},
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    **{"eval_batch_size": 4096, "train_neg_sample_args": None, "loss_type": "CE"},
    **{"hidden_size": 64, "inner_size": 256, "n_layers": 2, "n_heads": 8},
    **{"hidden_dropout_prob": 0.3, "attn_dropout_prob": 0.3},
    "eval_args": {
        **{"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
    },
    **{"metrics": ["Hit", "NDCG", "MRR"], "topk": [5, 10, 20], "valid_metric": "NDCG@10"},
    **{"show_progress": False, "seed": 2020, "reproducibility": True, "epochs": 1},
}


def now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def train(trainer: Trainer, batches: Any, least: float) -> tuple[float, int, int]:
    """``Trainer``'s loop for a while: seconds, steps and samples, all without the first step."""
    trainer.model.train()
    steps, samples = 0, 0
    first = now()
    for batch in batches:
        trainer.optimizer.zero_grad()
        loss = trainer.model.calculate_loss(batch.to(trainer.device))
        if torch.isnan(loss):  # which the trainer looks for, too
            raise ValueError("training loss is nan")
        loss.backward()
        trainer.optimizer.step()
        if not steps:
            first = now()
        else:
            samples += len(batch)
        steps += 1
        if steps > 3 and now() - first > least:
            break
    return now() - first, steps - 1, samples


def main() -> None:
    folder, batch_size, max_length, device, least = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    sys.argv = sys.argv[:1]
    sizes = {"MAX_ITEM_LIST_LENGTH": int(max_length), "train_batch_size": int(batch_size)}
    places = {"data_path": folder, "checkpoint_dir": folder, "use_gpu": device == "cuda"}
    config = Config(model="SASRec", dataset="peer", config_dict={**SETTINGS, **sizes, **places})
    init_seed(config["seed"], True)
    train_data, _, test_data = data_preparation(config, create_dataset(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = SASRec(config, train_data.dataset).to(config["device"])
    trainer = Trainer(config, model)
    seconds, steps, samples = train(trainer, train_data, float(least))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    start = now()
    trainer.evaluate(test_data, load_best_model=False)
    evaluation = now() - start
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "epoch_seconds": len(train_data) * seconds / steps,
        "targets_per_second": samples / seconds,
        "eval_seconds": evaluation,
        "eval_ms_per_4096": 4096e3 * evaluation / len(test_data.dataset),
        "peak_mib": peak / 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

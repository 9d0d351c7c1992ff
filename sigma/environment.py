"""Loads Lightning in half its time."""

import gc

# torchmetrics loads every metric it has: those of sound with SciPy, those of text with transformers
# where it happens to be installed. We use neither, and there is no setting.
UNUSED = ("scipy", "transformers")


def load_lightning() -> None:
    """Load Lightning; while torchmetrics asks for them, UNUSED packages are not installed.

    Only its question is answered so: whoever imports one of them has it. BERTScore, InfoLM and
    CLIPScore are then missing in torchmetrics.
    """
    gc.disable()  # next to nothing of what is loaded is garbage
    import torch  # noqa: F401
    from lightning_utilities.core import imports

    available, met = imports.package_available, imports.RequirementCache.__bool__
    imports.package_available = lambda name: name not in UNUSED and available(name)  # type: ignore[assignment]
    imports.RequirementCache.__bool__ = (  # type: ignore[method-assign]
        lambda self: not str(self.requirement).startswith(UNUSED) and met(self)
    )
    try:
        import lightning  # noqa: F401
        import torchmetrics  # noqa: F401
    finally:
        imports.package_available = available
        imports.RequirementCache.__bool__ = met  # type: ignore[method-assign]
        gc.enable()

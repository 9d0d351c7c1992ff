"""An epoch of RecBole's SASRec: run by ``models --recbole`` in RecBole's environment.

    python recbole_sasrec.py FOLDER BATCH_SIZE MAX_LENGTH DEVICE

FOLDER holds ``peer/peer.inter``. The settings are those the SIGMA authors ran (RecBole 1.2.1): 2
layers, 8 heads, cross entropy over all items, dropout 0.3. Prints one line of JSON.
"""

import json
import logging
import resource
import sys
import time
from typing import Any

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed

SPLIT = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
SETTINGS: dict[str, Any] = {
    **{"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp"},
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    **{"eval_batch_size": 4096, "train_neg_sample_args": None, "loss_type": "CE"},
    **{"hidden_size": 64, "inner_size": 256, "n_layers": 2, "n_heads": 8},
    **{"hidden_dropout_prob": 0.3, "attn_dropout_prob": 0.3, "eval_args": SPLIT},
    **{"metrics": ["Hit", "NDCG", "MRR"], "topk": [5, 10, 20], "valid_metric": "NDCG@10"},
    **{"show_progress": False, "seed": 2020, "reproducibility": True, "epochs": 1},
}


def main() -> None:
    folder, batch_size, max_length, device = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    sys.argv = sys.argv[:1]  # RecBole reads it
    sizes = {"MAX_ITEM_LIST_LENGTH": int(max_length), "train_batch_size": int(batch_size)}
    places = {"data_path": folder, "checkpoint_dir": folder, "use_gpu": device == "cuda"}
    config = Config(model="SASRec", dataset="peer", config_dict={**SETTINGS, **sizes, **places})
    init_seed(config["seed"], True)
    train_data, _, test_data = data_preparation(config, create_dataset(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = SASRec(config, train_data.dataset).to(config["device"])
    trainer = Trainer(config, model)
    start = time.perf_counter()
    trainer.fit(train_data, saved=False, verbose=False)
    trained = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    trainer.evaluate(test_data, load_best_model=False)
    evaluation = time.perf_counter() - trained
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "epoch_seconds": trained - start,
        "targets_per_second": len(train_data.dataset) / (trained - start),
        "eval_seconds": evaluation,
        "eval_ms_per_4096": 4096e3 * evaluation / len(test_data.dataset),
        "peak_mib": peak / 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""RecBole's SASRec for a while: run by ``benchmark_models --recbole`` in RecBole's environment.

    python recbole_sasrec.py FOLDER BATCH_SIZE MAX_LENGTH DEVICE SECONDS

FOLDER holds ``peer/peer.inter``. The settings are those the SIGMA authors ran (RecBole 1.2.1): 2
layers, 8 heads, cross entropy over all items, dropout 0.3. Prints one line of JSON.
"""

import json
import logging
import resource
import sys
import time

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed


def main() -> None:
    folder, batch_size, max_length, device, seconds = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    sys.argv = sys.argv[:1]
    config = Config(
        model="SASRec",
        dataset="peer",
        config_dict={
            "data_path": folder,
            "USER_ID_FIELD": "user_id",
            "ITEM_ID_FIELD": "item_id",
            "TIME_FIELD": "timestamp",
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": int(max_length),
            "train_batch_size": int(batch_size),
            "eval_batch_size": 4096,
            "train_neg_sample_args": None,
            "loss_type": "CE",
            "hidden_size": 64,
            "inner_size": 256,
            "n_layers": 2,
            "n_heads": 8,
            "hidden_dropout_prob": 0.3,
            "attn_dropout_prob": 0.3,
            "eval_args": {
                "split": {"LS": "valid_and_test"},
                "order": "TO",
                "group_by": "user",
                "mode": "full",
            },
            "metrics": ["Hit", "NDCG", "MRR"],
            "topk": [5, 10, 20],
            "valid_metric": "NDCG@10",
            "use_gpu": device == "cuda",
            "show_progress": False,
            "seed": 2020,
            "reproducibility": True,
            "epochs": 1,
            "checkpoint_dir": folder,
        },
    )
    init_seed(config["seed"], True)
    dataset = create_dataset(config)
    train_data, _, test_data = data_preparation(config, dataset)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = SASRec(config, train_data.dataset).to(config["device"])
    trainer = Trainer(config, model)

    def wait() -> float:
        if config["device"].type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    # Trainer._train_epoch's loop, stopped when the time is up.
    model.train()
    steps, samples = [], 0
    start = wait()
    for batch in train_data:
        trainer.optimizer.zero_grad()
        loss = model.calculate_loss(batch.to(config["device"]))
        trainer._check_nan(loss)
        loss.backward()
        trainer.optimizer.step()
        now = wait()
        steps.append(now - start)
        samples += len(batch) if len(steps) > 1 else 0
        start = now
        if sum(steps[1:]) > float(seconds) and len(steps) > 3:
            break
    spent = sum(steps[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    start = wait()
    trainer.evaluate(test_data, load_best_model=False)
    evaluated = wait() - start
    users = len(test_data.dataset)
    print(
        json.dumps(
            {
                "parameters": sum(p.numel() for p in model.parameters()),
                "epoch_seconds": len(train_data) * spent / (len(steps) - 1),
                "targets_per_second": samples / spent,
                "eval_seconds": evaluated,
                "eval_ms_per_4096": 4096e3 * evaluated / users,
                "peak_mib": peak / 1024,
            }
        )
    )


if __name__ == "__main__":
    main()

"""A recipe key that does not exist: the message says under which name, or where else, such a setting lives."""

from collections.abc import Sequence

from leanconv.errors import UnknownName
from leanconv.registry import nearest

# Names that other tools use -> our key.
_SYNONYMS = {
    "size": "imgsz img_size image_size crop crop_size input_size input_shape resolution side tile_size",
    "lr": "learning_rate lr0 base_lr rate eta",
    "batch": "batch_size bs batchsize train_batch_size",
    "epochs": "num_epochs max_epochs n_epochs",
    "steps": "max_steps num_steps iterations max_iters iters",
    "workers": "num_workers nworkers dataloader_workers",
    "weight_decay": "wd decay l2",
    "optimizer": "optim opt",
    "schedule": "scheduler lr_scheduler lr_schedule",
    "warmup": "warmup_steps warmup_epochs",
    "clip": "grad_clip clip_grad max_norm gradient_clip_val",
    "smoothing": "label_smoothing",
    "amp": "precision mixed_precision fp16 bf16 half",
    "data": "dataset data_dir root input images",
    "out": "output output_dir outdir project save_dir name run",
    "model": "arch architecture network net",
    "seed": "random_state random_seed",
    "loss": "criterion loss_fn",
    "augment": "augmentation augmentations aug",
    "flips": "flip hflip vflip fliplr",
    "zoom": "scale random_scale",
    "light": "brightness contrast color_jitter jitter",
    "save_every": "checkpoint_every save_interval save_steps",
    "eval_every": "val_every eval_interval val_interval check_val_every_n_epoch",
    "log_every": "log_interval logging_steps",
    "device": "gpu gpus cuda accelerator",
    "threads": "num_threads cpu_threads",
    "swap": "operator to",
    "where": "layers only",
    "classes": "names class_names nc labels",
    "teacher": "teacher_model distill distill_from kd_teacher",
    "teacher_weight": "alpha kd_alpha kd_weight distill_weight distill_loss_weight",
    "temperature": "tau kd_temperature distill_temperature",
    "feature_weight": "hint_weight feature_loss_weight",
}
# Settings that are not the recipe's: their names -> where they are said.
_ELSEWHERE = {
    "colors colours palette ignore ignore_index": 'said with the data: data="DIR?classes=4&ignore=255"',
    "threshold thresh conf": "chosen on validation; `leanconv eval RUN --threshold .4` takes another",
    "split val val_split val_size test_size": "said with the data, as folders DIR/train, DIR/val and DIR/test",
    "num_classes out_channels": "not needed: the outputs follow the classes of the data (`classes` names them)",
    "conv base width levels depth replace": (
        'an option of the model: model="leanconv:unet?base=16&conv=depthwise_separable"'
    ),
    "backbone encoder encoder_name encoder_weights": (
        'an option of the model: model="smp:Unet?encoder_name=resnet18"; pretrained=true fetches its weights'
    ),
    "weights checkpoint init_from": "the model itself: model=runs/old trains that run's weights on",
    "patience early_stopping": "not needed: the best weights on validation are kept (keep=best)",
    "mean std normalize": "fixed: every image is scaled to (value / 255 - 0.5) / 0.25",
    "tile overlap": "of prediction: `leanconv predict RUN --tile 512`",
    "engine engines": "of later commands: training runs in PyTorch",
    "world_size": "said by the launcher: accelerate launch -m leanconv train ...",
    "resume": "an option: --resume",
    "also_dense": "an option: --also-dense",
    "trust_code": "an option: --trust-code",
    "quiet": "an option: --quiet",
    "json": "an option: --json",
}


def unknown_key(key: str, known: Sequence[str], where: str) -> UnknownName:
    """The error for a key that is not `known`: the nearest one, ours for another tool's name, or its place.

    Args:
        where: the file or "command line".
    """
    word = key.lower().replace("-", "_")
    ours = next((name for name, others in _SYNONYMS.items() if word in others.split() and name in known), None)
    if word in known:
        ours = word
    if ours:
        return UnknownName(f"{where}: unknown recipe key {key!r}: it is called {ours!r} here")
    place = next((place for words, place in _ELSEWHERE.items() if word in words.split()), "")
    if place:
        return UnknownName(f"{where}: no recipe key is called {key!r}: it is {place}")
    return UnknownName(f"{where}: unknown recipe key {key!r}{nearest(key, list(known))}; known: {', '.join(known)}")

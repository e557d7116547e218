"""Losses in what scripts print: each text is what such a script prints, progress bars and colours included."""

from __future__ import annotations

import math

import bstune
import pytest
from bstune.objectives.metric_lines import MetricLines, compiled

KERAS = (
    b"Epoch 1/2\n\r 1/10 [=>....] - loss: 2.3000\r10/10 [=====] - 1s 9ms/step - loss: 1.9000 - val_loss: 1.5000\n"
    b"Epoch 2/2\n\r 1/10 [=>....] - loss: 1.5000\r10/10 [=====] - 1s 9ms/step - loss: 1.2000 - val_loss: 1.1000\n"
)
LIGHTNING = (
    b"\rEpoch 0:   0%|          | 0/8\rEpoch 0: 100%|\xe2\x96\x88\xe2\x96\x88| 8/8 [00:01<00:00, v_num=0]"
    b"\rEpoch 0: 100%|\xe2\x96\x88| 8/8 [00:01<00:00, v_num=0, val_loss=0.900]"
    b"\rEpoch 1:  50%|\xe2\x96\x88 | 4/8 [00:01<00:00, v_num=0, val_loss=0.900]"
    b"\rEpoch 1: 100%|\xe2\x96\x88| 8/8 [00:01<00:00, v_num=0, val_loss=0.700]\n"
)
TIMM = (
    b"Train: 0 [   0/195 (  0%)]  Loss: 6.94 (6.94)  LR: 1.000e-05\n"
    b"Test: [   0/78]  Time: 1.9 (1.9)  Loss:   1.100 ( 1.100)  Acc@1: 70.0\n"
    b"Test: [  78/78]  Time: 0.1 (0.3)  Loss:   0.800 ( 0.950)  Acc@1: 75.0\n"
    b"Train: 1 [   0/195 (  0%)]  Loss: 6.54 (6.54)  LR: 1.000e-05\n"
    b"Test: [  78/78]  Time: 0.1 (0.3)  Loss:   0.700 ( 0.850)  Acc@1: 77.0\n"
)
ULTRALYTICS = (
    b"      Epoch    GPU_mem   box_loss   cls_loss   dfl_loss  Instances       Size\n"
    b"\r        1/2         0G      1.100      2.200      1.300         12        640: 100%|###| 8/8\n"
    b"                 Class     Images  Instances      Box(P          R      mAP50  mAP50-95): 100%|##| 4/4\n"
    b"                   all        128        929      0.640      0.530      0.600      0.450\n"
    b"\r        2/2         0G      1.000      2.000      1.200         12        640: 100%|###| 8/8\n"
    b"                   all        128        929      0.660      0.550      0.620      0.470\n"
    b"Validating runs/detect/train/weights/best.pt...\n"
    b"                   all        128        929      0.660      0.550      0.620      0.470\n"
)
IMAGENET = (
    b"Epoch: [0][ 1/10]\tTime 0.1 (0.1)\tLoss 6.9e+00 (6.9e+00)\tAcc@1   0.00 (  0.00)\n"
    b"Test: [10/10]\tTime  0.1 (0.1)\tLoss 6.8e+00 (6.8e+00)\tAcc@1   0.80 (  0.50)\n *   Acc@1 0.500 Acc@5 2.000\n"
    b"Epoch: [1][ 1/10]\tTime 0.1 (0.1)\tLoss 6.9e+00 (6.9e+00)\tAcc@1   0.00 (  0.00)\n"
    b" *   Acc@1 20.000 Acc@5 40.000\n"
)
WITH_LOSS = b"Train: 0 loss 0.8\n * Acc@1 13.854 loss 2.6088\nTrain: 1 loss 0.1\n* Acc@1 57.9 Acc@5 80.1 loss 1.1209\n"
TORCHVISION = b"Epoch: [0] Total time: 0:00:02\nTest:  Acc@1 10.000 Acc@5 52.0\nTest: EMA Acc@1 9.0 Acc@5 50.0\n"
MNIST = (
    b"Train Epoch: 1 [0/60000 (0%)]\tLoss: 2.299825\n\n"
    b"Test set: Average loss: 0.0470, Accuracy: 9839/10000 (98%)\n\n"
    b"Train Epoch: 2 [0/60000 (0%)]\tLoss: 0.055\n\nTest set: Average loss: 0.0347, Accuracy: 9889/10000 (99%)\n"
)
TRAINER = (
    b"{'loss': 0.69, 'grad_norm': 1.9, 'learning_rate': 4e-05, 'epoch': 0.5}\n"
    b"{'eval_loss': 0.61, 'eval_runtime': 1.2, 'epoch': 0.5}\n"
    b"{'eval_loss': '0.52', 'eval_runtime': '1.2', 'epoch': '1'}\n"
    b"{'train_runtime': 10.0, 'train_loss': 0.6, 'epoch': 1.0}\n"
)
STEPS = b"step 0: train loss 4.2, val loss 4.3\niter 10: loss 3.0, time 2ms\nstep 50: train loss 2.4, val loss 2.5\n"
EPOCHS = b"epoch 0 | train_loss 1.0 | val_loss 0.8\nepoch 1 | train_loss 0.8 | val_loss 0.7\n"


def read(text: bytes, metric: str | None = None, *, piece: int = 7) -> list[tuple[float, int]]:
    """Read a text in pieces, as it comes out of a pipe, of a script with 100 samples an epoch and batches of 4."""
    lines = MetricLines(metric, samples_per_epoch=100, batch_size=4)
    said = [one for at in range(0, len(text), piece) for one in lines.feed(text[at : at + piece])]
    return [(one.val_loss, one.samples) for one in (*said, *lines.finish())]


@pytest.mark.parametrize(
    ("text", "losses"),
    [
        (KERAS, [(1.5, 100), (1.1, 200)]),
        (LIGHTNING, [(0.9, 100), (0.7, 200)]),
        (TIMM, [(0.95, 100), (0.85, 200)]),
        (IMAGENET, [(0.995, 100), (0.8, 200)]),
        (WITH_LOSS, [(2.6088, 100), (1.1209, 200)]),
        (TORCHVISION, [(0.9, 100)]),
        (ULTRALYTICS, [(0.55, 100), (0.53, 200)]),
        (MNIST, [(0.047, 100), (0.0347, 200)]),
        (TRAINER, [(0.61, 50), (0.52, 100)]),
        (STEPS, [(4.3, 0), (2.5, 200)]),
        (EPOCHS, [(0.8, 100), (0.7, 200)]),
        (b"Validation loss: 0.5\nValidation loss: 0.25\n", [(0.5, 100), (0.25, 200)]),
        (b"Epoch 5: Val. Loss: 1.5e-3\nepoch 10: Val. Loss: 1e-3\n", [(0.0015, 500), (0.001, 1000)]),
        (b"lossless interval_loss=3 train_loss=2\n", []),
    ],
    ids=[
        *("keras", "lightning", "timm", "imagenet", "with loss", "torchvision", "ultralytics", "mnist"),
        *("trainer", "steps", "epochs", "plain", "rare", "none"),
    ],
)
@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_common_scripts_are_read(text: bytes, losses: list[tuple[float, int]], piece: int) -> None:
    """The loss of each epoch once, at the samples it had then, however the text arrives."""
    assert [(round(loss, 9), samples) for loss, samples in read(text, piece=piece)] == losses


@pytest.mark.parametrize(
    ("text", "metric", "loss"),
    [
        (b"val_loss=0,25\n", r"val_loss=([\d.eE+-]+)", 0.25),
        (b"val_loss: 0,25, acc: 0,5\n", None, 0.25),
        (b"\x1b[1;32mval_loss\x1b[0m=\x1b[31m0.25\x1b[0m\n", None, 0.25),
        (b"\r 10% val_loss=0.9\r 90% val_loss=0.25\n", None, 0.25),
        (b"val acc 75.0 %\n", r"val acc (?P<accuracy>[\d.]+)", 0.25),
        (b"top-1 0.5 %\n", r"top-1 (?P<percent>[\d.]+)", 0.995),
        (b"fold val_loss=0.25", None, 0.25),
    ],
    ids=["own comma", "comma", "colours", "redrawn", "accuracy", "percent", "no end of line"],
)
def test_numbers_in_all_their_forms(text: bytes, metric: str | None, loss: float) -> None:
    """A decimal comma, colours, a bar that is drawn over, an accuracy, a line that was not ended."""
    assert [value for value, _ in read(text, metric)] == [loss]


@pytest.mark.parametrize("text", [b"val_loss=nan\n", b"val_loss=inf\n", b"val_loss=NaN\n"])
@pytest.mark.parametrize("metric", [None, r"val_loss=([\d.eE+-]+)"])
def test_a_loss_that_is_not_finite_is_seen(text: bytes, metric: str | None) -> None:
    """Also where the user's pattern matches numbers only: a run that diverges is not one that says nothing."""
    [(loss, samples)] = read(text, metric)

    assert not math.isfinite(loss)
    assert samples == 100


def test_the_samples_may_stand_on_the_line() -> None:
    """A group of the pattern says how far the script is."""
    assert read(b"seen 250 loss 0.5\n", r"seen (?P<samples>\d+) loss (?P<value>[\d.]+)") == [(0.5, 250)]


@pytest.mark.parametrize(("metric", "said"), [("loss=(", "not a regular expression"), ("loss=[0-9]+", "which part is")])
def test_a_pattern_without_a_value_is_refused(metric: str, said: str) -> None:
    """Before anything is run."""
    with pytest.raises(bstune.ArgumentError, match=said):
        compiled(metric)


@pytest.mark.parametrize(
    ("metric", "refused"),
    [
        (r"val_acc=([\d.]+)", True),
        (r"AUC: (?P<value>[\d.]+)", True),
        (r"val_acc=(?P<accuracy>[\d.]+)", False),
        (r"Acc@1 [\d.]+ loss ([\d.]+)", False),
        (r"(?P<epoch>\d+) (?P<value>[\d.]+)", False),
    ],
)
def test_a_score_that_is_read_as_a_loss_is_refused(metric: str, refused: bool) -> None:
    """The error names the group whose complement is minimised."""
    if not refused:
        assert set(compiled(metric)) == {"yours"}
        return
    with pytest.raises(bstune.ArgumentError, match=r"as the loss, and bstune minimises.*\(\?P<accuracy>"):
        compiled(metric)


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        (b"Namespace(epoch=2)\nEpoch 0: loss 2\nEpoch 0: loss 1\n", 0),
        (b"Epoch 1: loss 2\nEpoch 2: loss 1\n", 1),
        (b"Epoch 5: loss 2\nEpoch 10: loss 1\n", 0),
    ],
)
def test_an_epoch_has_ended_where_the_next_is_named(text: bytes, ended: int) -> None:
    """Other numbers that look like one are none."""
    lines = MetricLines(None, samples_per_epoch=100, batch_size=10)

    assert list(lines.feed(text)) == []
    assert lines.epochs == ended


@pytest.mark.parametrize(
    ("line", "trains"),
    [
        ("Epoch 1/3", True),
        ("step 20 loss 0.31", True),
        (" 12%|#2        | 100/834 [00:05<00:38, 19.0it/s]", True),
        ("Generator loss: 0.31 | Discriminator loss: 0.70", True),
        ("12000 tokens/s | loss 2.31 | step 30", True),
        ("Map:  12%|#2        | 1000/8340 [00:05<00:38, 190.0 examples/s]", False),
        ("Loading checkpoint shards:  50%|#####     | 1/2 [00:30<00:30, 30.1s/it]", False),
        ("Running tokenizer on dataset: 100%|####| 5000/5000 [00:20<00:00, 250it/s]", False),
        ("model.safetensors (downloading):  12%|#2   | 1.2G/10G", False),
    ],
)
def test_what_prepares_does_not_train(line: str, trains: bool) -> None:
    """Data sets and weights have progress bars too, for minutes in which the memory of training is not seen."""
    lines = MetricLines(None, samples_per_epoch=100, batch_size=10)
    list(lines.feed(line.encode() + b"\n"))

    assert lines.trains == trains

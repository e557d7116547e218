"""What a training script takes on its command line, by reading it: nothing of it is run.

So that who names a script where an objective was expected is told the command line to use.
"""

from __future__ import annotations

import ast
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

ROLES: Mapping[str, tuple[str, ...]] = {
    "micro_batch_size": (
        "per_device_train_batch_size",
        "micro_batch_size",
        "device_batch_size",
        "train_batch_size",
        "per_gpu_train_batch_size",
        "batch_size",
        "batchsize",
        "mini_batch_size",
        "batch",
        "bs",
        "b",
    ),
    "global_batch_size": ("global_batch_size", "total_batch_size", "effective_batch_size"),
    "accumulation_steps": (
        "gradient_accumulation_steps",
        "grad_accumulation_steps",
        "accumulation_steps",
        "accumulate_grad_batches",
        "grad_accum_steps",
        "grad_accum",
        "accum_steps",
        "accum_iter",
    ),
    "learning_rate": ("learning_rate", "lr", "base_lr", "init_lr", "lr0"),
    "max_epochs": ("num_train_epochs", "max_epochs", "num_epochs", "n_epochs", "epochs", "epoch"),
    "seed": ("seed", "seed_everything", "random_seed"),
}
"""What flags for a place of ours are called, the surest name first."""
OUTPUTS = ("output_dir", "out_dir", "save_dir", "outdir", "output", "out")
"""What the flag for where a script writes is called."""
TRAINER = {
    "--per_device_train_batch_size": 8,
    "--gradient_accumulation_steps": 1,
    "--learning_rate": 5e-5,
    "--num_train_epochs": 3,
    "--seed": 42,
    "--output_dir": None,
}
"""Flags of Transformers' `TrainingArguments`, with their defaults."""


@dataclass(frozen=True)
class Flags:
    """The command line of a script, as far as it can be read.

    Attributes:
        parser: What reads it: `argparse`, `click`, `HfArgumentParser`, `LightningCLI`, `absl`.
        flags: As they are written, such as `--batch-size`, with the default where it is a constant.
        short: Other ways to write them, such as `-b`.
    """

    parser: str
    flags: Mapping[str, object]
    short: Mapping[str, str] = field(default_factory=dict)

    def of(self, role: str) -> str | None:
        """Return the flag for one of our places, or None."""
        return self.named(ROLES[role])

    def named(self, known: Iterable[str]) -> str | None:
        """Return the flag of the first of these names that there is, or None."""
        names = {
            flag.lstrip("-").rpartition(".")[2].replace("-", "_").lower(): flag for flag in reversed(list(self.flags))
        }
        return next((names[name] for name in known if name in names), None)

    def default(self, flag: str | None) -> float | None:
        """Return the number that a flag has when it is not given, or None."""
        value = self.flags.get(self.short.get(flag or "", flag or ""))
        return None if isinstance(value, bool) or not isinstance(value, int | float) else value


def parsed(content: bytes) -> ast.Module | None:
    """Return the syntax tree of a file, or None where it is no Python that can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of the user's own file; running it tells them.
            return ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def flags_in(tree: ast.Module) -> Flags | None:
    """Return the command line that a script reads, or None where it reads none that is known.

    Example:
        >>> found = flags_in(ast.parse("p.add_argument('-b', '--batch-size', default=64); p.add_argument('--lr')"))
        >>> found.parser, found.of("micro_batch_size"), found.of("learning_rate"), found.of("seed")
        ('argparse', '--batch-size', '--lr', None)
    """
    names = {called(node) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    if "LightningCLI" in names:
        return Flags("LightningCLI", dict(_lightning(tree)))
    found: dict[str, object] = {}
    short: dict[str, str] = {}
    parser = None
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        what, texts = called(node), [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        options = [text for text in texts if isinstance(text, str) and text.startswith("-")]
        default = next((_constant(keyword.value) for keyword in node.keywords if keyword.arg == "default"), None)
        if what in ("add_argument", "option") and options:
            parser = parser or ("argparse" if what == "add_argument" else "click")
            found[longest := max(options, key=len)] = default
            short |= dict.fromkeys(options, longest)
        elif what.startswith("DEFINE_") and texts and isinstance(texts[0], str):
            parser = parser or "absl"
            found[f"--{texts[0]}"] = _constant(node.args[1]) if len(node.args) > 1 else None
    if "HfArgumentParser" in names:
        return Flags("HfArgumentParser", {**TRAINER, **found}, short)
    return Flags(parser, found, short) if parser is not None else None


def called(node: ast.Call) -> str:
    """Return the name of what is called, without what it is an attribute of."""
    function = node.func
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def _constant(node: ast.expr) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def _lightning(tree: ast.Module) -> Iterator[tuple[str, object]]:
    """Yield the flags of LightningCLI: those of the trainer, and the arguments of the classes in the file."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        bases = " ".join(ast.unparse(base) for base in node.bases)
        part = "data" if "DataModule" in bases else "model" if "LightningModule" in bases else None
        for item in node.body:
            if part and isinstance(item, ast.FunctionDef) and item.name == "__init__":
                named, defaults = item.args.args[1:], [_constant(value) for value in item.args.defaults]
                named_only = [None if value is None else _constant(value) for value in item.args.kw_defaults]
                values = [*[None] * (len(named) - len(defaults)), *defaults, *named_only]
                for argument, value in zip([*named, *item.args.kwonlyargs], values, strict=True):
                    yield f"--{part}.{argument.arg}", value
    yield "--trainer.accumulate_grad_batches", None
    yield "--trainer.max_epochs", None
    yield "--seed_everything", None


def binds(tree: ast.Module, name: str) -> bool:
    """Tell whether a file may give a meaning to a name at its top level, also in branches of it."""
    todo: list[ast.stmt] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name == name:
                return True
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            if any(alias.name == "*" or (alias.asname or alias.name) == name for alias in node.names):
                return True
            continue
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store) and part.id == name:
                return True
            if isinstance(part, ast.Call) and called(part) in ("globals", "setattr", "exec"):
                return True
            if isinstance(part, ast.stmt) and part is not node:
                todo.append(part)
    return False


def _needs_torchrun(tree: ast.Module) -> bool:
    """Tell whether others start a script, as one of several processes; one that says its rank starts them itself."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    joins = [node for node in calls if called(node) == "init_process_group"]
    told = any(keyword.arg in ("rank", "world_size") for node in joins for keyword in node.keywords)
    return bool(joins) and not told and not any(called(node) in ("spawn", "Process") for node in calls)


@dataclass(frozen=True)
class ScriptLine:
    """How a script is searched as it is.

    Attributes:
        flags: What it reads.
        options: Of `bstune search`, from what is in the script.
        words: The command after `--`, as it is typed.
        missing: What no flag was recognised for; `--YOUR-FLAG` stands in its place.
    """

    flags: Flags
    options: str
    words: str
    missing: tuple[str, ...]


def script_line(content: bytes, name: str, place: str) -> ScriptLine | None:
    """Return the command line for a file that reads one and defines no objective; None where it is another one.

    Args:
        content: Of the file.
        name: Of the objective that was looked for.
        place: The path, as the user gave it.
    """
    tree = parsed(content)
    flags = None if tree is None else flags_in(tree)
    if tree is None or flags is None or binds(tree, name):
        return None
    found = {role: flag for role in ROLES if (flag := flags.of(role)) is not None}
    needed = ("micro_batch_size", "learning_rate")
    if "micro_batch_size" not in found and "global_batch_size" in found:
        needed = ("global_batch_size", "learning_rate")
    if not set(needed) & set(found):
        return None
    start = "torchrun --standalone --nproc-per-node 2" if _needs_torchrun(tree) else "python"
    words = [start, shlex.quote(place), *(["fit"] if flags.parser == "LightningCLI" else [])]
    for role in ROLES:
        flag = found.get(role)
        if flag is None and role in needed:
            flag = "--YOUR-FLAG"
        if flag is not None:
            words.append(f"{flag} {{{role}}}")
    if flags.parser == "HfArgumentParser" and any(
        isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).endswith("TrainingArguments")
        for node in ast.walk(tree)
    ):
        words.append("--eval_strategy epoch")  # By default its Trainer does not validate.
    if (output := flags.named(OUTPUTS)) is not None:
        words.append(f"{output} runs/{{trial}}")
    epochs = flags.flags.get(found.get("max_epochs", ""))
    own = f" --epochs {epochs}" if isinstance(epochs, int) and not isinstance(epochs, bool) else ""
    missing = tuple(role for role in needed if role not in found)
    return ScriptLine(flags, f"--samples-per-epoch N{own}", " ".join(words), missing)


def defaults_in(content: bytes, flags: Mapping[str, str]) -> dict[str, float]:
    """Return the numbers that a script has for flags which it is not given, as far as they can be read.

    Args:
        content: Of the file.
        flags: By the name of the place that each one fills, such as `learning_rate`.

    Example:
        >>> defaults_in(b"p.add_argument('-b', '--batch-size', default=64)", {"micro_batch_size": "-b"})
        {'micro_batch_size': 64}
    """
    tree = parsed(content)
    found = None if tree is None else flags_in(tree)
    if found is None:
        return {}
    return {name: value for name, flag in flags.items() if (value := found.default(flag)) is not None}


def optimizer_in(content: bytes) -> str | None:
    """Return the class of torch's optimizers that a script makes, where it makes one kind only.

    Example:
        >>> optimizer_in(b"opt = torch.optim.SGD(m.parameters(), lr=lr)"), optimizer_in(b"optim.SGD(p); optim.Adam(p)")
        ('SGD', None)
    """
    tree = parsed(content)
    if tree is None:
        return None
    known = {"SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "Muon"}
    made = {called(node) for node in ast.walk(tree) if isinstance(node, ast.Call)} & known
    return made.pop() if len(made) == 1 else None

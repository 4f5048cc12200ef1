"""Which config is meant: a file, the name of one that comes along, or that of a run."""

from pathlib import Path

from mnist_lightning.errors import InputError


def with_configs(args: list[str]) -> list[str]:
    """Resolves the names of shipped configs, and takes a run's own config where only a checkpoint is given."""
    args = list(args)
    for index, word in enumerate(args):
        flag, equals, value = word.partition("=")
        if flag in ("-c", "--config") and equals:
            args[index] = f"{flag}={_config_file(value)}"
        elif word in ("-c", "--config") and index + 1 < len(args):
            args[index + 1] = str(_config_file(args[index + 1]))
    flags = {word.partition("=")[0] for word in args}
    if "--ckpt_path" in flags and not flags & {"-c", "--config", "--model", "--model.class_path"}:
        index = next(i for i, word in enumerate(args) if word.partition("=")[0] == "--ckpt_path")
        value = args[index].partition("=")[2] or "".join(args[index + 1 : index + 2])
        for folder in (Path(value), Path(value).parent.parent):
            if (folder / "config.yaml").is_file():
                return [args[0], "--config", str(folder / "config.yaml"), *args[1:]]
    return args


def _config_file(name: str) -> Path:
    """A config's path, or the shipped config of this name.

    Raises:
        InputError: If there is neither.
    """
    package = Path(__file__).parent
    shipped = next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())
    for path in (Path(name), shipped / f"{name}.yaml", shipped / "published" / f"{name}.yaml"):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in shipped.rglob("*.yaml")))
    raise InputError(f"there is no config {name}: give a file, or one of those that come along: {names}")

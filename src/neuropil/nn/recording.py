"""What a model's parts put out, collected while a block runs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from neuropil.errors import Refused, nearest


@contextmanager
def recording(model: nn.Module, *names: str) -> Iterator[dict[str, list[Any]]]:
    """Inside the block, each forward call of the submodule `name` appends its detached output to ``record[name]``.

    `names` are those of ``model.named_modules()`` (``""`` is the model itself); tuples, lists and dicts of tensors keep
    their form. Outputs are detached, not copied: clone what a later in-place operation might overwrite. Memory: all outputs
    stay until the record is dropped. The hooks go away when the block ends, also by an exception. An unknown name is
    `Refused` before anything is hooked.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with recording(model, "0") as record:
    ...     _ = model(torch.ones(5, 2))
    >>> [x.shape for x in record["0"]]
    [torch.Size([5, 3])]
    """
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            hint = (
                nearest(name, modules)
                or f" (allowed: {', '.join(sorted(filter(None, modules))) or 'the model itself, as an empty name'})"
            )
            raise Refused(f"names: the model has no submodule {name!r}{hint}")
    record: dict[str, list[Any]] = {name: [] for name in names}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            record[name].append(tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, output))

        return hook

    with ExitStack() as hooks:
        for name in record:
            hooks.callback(modules[name].register_forward_hook(keep(name)).remove)
        yield record

"""Named sites of any model: `record` what passes there or `override` it, while a block runs; afterwards the model is as before.

A site is named by the path of a submodule, as in ``model.named_modules()`` ("" is the model itself):

    layers.0.mlp            what this submodule puts out
    layers.0.mlp:in         its first argument;  :in[1] its second,  :in[mask] the one given by that keyword
    gru[0]  out[logits]     one part of an output that is a tuple or a dict
    layers.*.attention.q    * stands for one step of the path, ** for any number of steps: those that run

A value inside a forward function gets a name where its module holds a `Site` and passes the value through it: `MultiHead` has q, k,
v, scores, pattern and z. Blocks nest; where several touch one site, the block entered first acts first and the next sees what it
left. A site that the model has not, or that did not run inside the block, is `Refused`, and so is a pattern none of whose sites
ran: nothing is ever silently missed.

For training, too ("artificial optogenetics", Singh et al. 2024, arXiv:2404.07129): ``record(…, graph=True)`` keeps graphs, and
constants put in by `override` get no gradient. The work is done by torch's hooks: a module must be *called*, and run eagerly. A
model under torch.compile is `Refused`; so is a block whose sites ran inside a function compiled before it.
"""

import copy
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from neuropil.errors import Refused, nearest

NAME = re.compile(r"(?P<path>[^\[\]:]*)(?P<entering>:in)?(?P<keys>(?:\[[^\[\]]+\])*)")


class Site(nn.Module):
    """The identity, put where a value inside a forward function should have a name: no parameters, a microsecond a call.

    `watched` tells the forward function whether anyone listens: a value that a fused kernel never forms need be formed only then.

    >>> Site()(torch.ones(2))
    tensor([1., 1.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """`x` itself."""
        return x

    @property
    def watched(self) -> bool:
        """Whether a hook hangs here now."""
        return bool(self._forward_hooks or self._forward_pre_hooks)


def sites(model: nn.Module, pattern: str = "**") -> list[str]:
    """The names of all submodules that match and have a forward function, in the model's order. `Refused` if none does.

    >>> sites(nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU())))
    ['0', '1', '1.0']
    """
    return [place.name for place in _find(model, [pattern])]


@contextmanager
def record(
    model: nn.Module, *names: str, keep: Callable[[Tensor], Any] | None = None, graph: bool = False
) -> Iterator[dict[str, list[Any]]]:
    """Inside the block, each pass through a site appends what it finds there to ``record[name]``.

    Args:
        names: sites; the record has a list for each of them, and in the end for each one that ran of those that a pattern matches.
        keep: what to keep of each tensor, say ``lambda x: x.mean((0, 1))``, so that memory stays small; default: the tensor.
        graph: keep tensors in the graph, to differentiate by them (`torch.autograd.grad`); a floating value that nothing before it
            made differentiable starts a graph there. Default: detached.

    Tuples, lists and dicts of tensors keep their form. Tensors are not copied; one that a later operation overwrites in place is
    `Refused` at the end of the block (``keep=torch.clone`` copies). About two microseconds a pass; memory: what is kept, which on
    Linux costs more time than the hooks: pages freed after one block are asked for anew in the next, unless the environment has
    ``MALLOC_TRIM_THRESHOLD_`` and ``MALLOC_MMAP_THRESHOLD_`` above its size. `Refused` also for a site that does not exist or did
    not run.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with record(model, "0", "1:in") as seen:
    ...     _ = model(torch.ones(5, 2))
    >>> seen["0"][0].shape, torch.equal(seen["0"][0], seen["1:in"][0])
    (torch.Size([5, 3]), True)
    """
    if not names:
        raise Refused("names: at least one site is needed, got none")
    places = {place.name: place for place in _find(model, names)}
    seen: dict[str, list[Any]] = {name: [] for name in places}
    versions: list[tuple[str, weakref.ref[Tensor], int]] = []

    def noting(name: str) -> Callable[[Any], Any]:
        def one(x: Tensor) -> Any:
            x = x if graph else x.detach()
            if keep is not None:
                return keep(x)
            if not x.is_inference():
                versions.append((name, weakref.ref(x), x._version))
            return x

        def note(value: Any) -> Any:
            if graph and torch.is_grad_enabled():
                value = _each(_differentiable, value)
            seen[name].append(_each(one, value))
            return value

        return note

    with _hooks([(place, noting(name)) for name, place in places.items()]):
        yield seen
    for name in [name for name, passed in seen.items() if not passed]:
        del seen[name]
    for name, reference, version in versions:
        if (x := reference()) is not None and x._version != version:
            raise Refused(f"site {name!r}: what was recorded was overwritten in place afterwards; keep=torch.clone records a copy")


@dataclass(frozen=True)
class Edit:
    """``x ← change(x)`` where the mask says so; made by `replace`, `scale`, `clamp` and `change`."""

    change: Callable[["Tensor", Callable[[Any], Tensor]], Any]
    where: Tensor | None = None

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """The value to go on with at the site `name`."""
        before = None if x.is_inference() else x._version
        new = self.change(x, lambda constant: _constant(name, constant, x))
        if not isinstance(new, Tensor) or new.shape != x.shape:
            got = f"shape {tuple(new.shape)}" if isinstance(new, Tensor) else f"a {type(new).__name__}"
            raise Refused(f"site {name!r}: the function must give a tensor of shape {tuple(x.shape)}, got {got}")
        if before is not None and x._version != before:
            raise Refused(f"site {name!r}: the function changed its argument in place; let it give a new tensor")
        new = new.to(x)
        return new if self.where is None else torch.where(_mask(name, self.where, x), new, x)


def replace(value: Any, where: Tensor | None = None) -> Edit:
    """``x ← value``, a number or a tensor that broadcasts to the site; it is a constant: no gradient reaches it.

    >>> model = nn.Sequential(nn.Identity())
    >>> with override(model, {"0": replace(0.0, where=torch.tensor([True, False]))}):
    ...     model(torch.ones(2))
    tensor([0., 1.])
    """
    return Edit(lambda x, constant: constant(value).expand_as(x).clone(), where)


def scale(factor: Any, where: Tensor | None = None) -> Edit:
    """``x ← factor · x``; the factor, a number or a tensor that broadcasts to the site, is a constant."""
    return Edit(lambda x, constant: constant(factor) * x, where)


def clamp(low: Any = None, high: Any = None, where: Tensor | None = None) -> Edit:
    """``x ← min(max(x, low), high)``; bounds are constants, numbers or tensors, and either may be missing."""
    if low is None and high is None:
        raise Refused("low, high: at least one bound is needed, got none")

    def between(x: Tensor, constant: Callable[[Any], Tensor]) -> Tensor:
        bounds = [None if bound is None else constant(bound) for bound in (low, high)]
        return torch.clamp(x, *bounds)

    return Edit(between, where)


def change(function: Callable[[Tensor], Tensor], where: Tensor | None = None) -> Edit:
    """``x ← function(x)``, of the same shape, in the graph: gradients reach x and whatever the function uses."""
    return Edit(lambda x, constant: function(x), where)


@contextmanager
def override(model: nn.Module, edits: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block, what passes each site is changed on its way, at every pass.

    `edits` maps sites to a number or tensor (`replace`), a function (`change`), or one of `replace`, `scale`, `clamp`, `change`
    with a boolean mask `where` that broadcasts to the site: True units are changed, the others pass with their gradients. While
    a function of this block runs, the block's own edits rest: it may run the model itself to look at the unperturbed pass.

    No edits at all change nothing. `Refused` for a site that does not exist, did not run, or holds no tensor; for constants and
    masks that do not fit it (named with both shapes); for a function that gives another shape.

    >>> model = nn.Sequential(nn.Identity(), nn.Flatten())
    >>> with override(model, {"0": lambda x: 2 * x}):
    ...     model(torch.ones(1, 3))
    tensor([[2., 2., 2.]])
    """
    resting = False

    def putting(name: str, edit: Edit) -> Callable[[Any], Any]:
        def put(x: Any) -> Any:
            nonlocal resting
            if resting:
                return x
            if not isinstance(x, Tensor):
                raise Refused(f"site {name!r}: holds {_form(x)}, no tensor; name a part of it, as {name + '[0]'!r}")
            resting = True
            try:
                return edit(name, x)
            finally:
                resting = False

        return put

    with _hooks([(place, putting(place.name, _edit(edits[place.given]))) for place in _find(model, edits)]):
        yield


def downstream(model: nn.Module, site: str, *inputs: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The value z at a site that runs once in ``model(*inputs)``, and f with ``f(z) = model(*inputs)``: the rest of the model.

    f takes any values in the place of z, also several copies of the batch one after another (the tensors among the inputs are
    repeated, then), and is differentiable. Each call costs a whole pass of the model. `Refused` if the site runs more than once.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    >>> z, f = downstream(model, "0", torch.ones(5, 2))
    >>> torch.equal(f(z), z.tanh()), f(torch.zeros(10, 3)).shape
    (True, torch.Size([10, 3]))
    """
    with torch.no_grad(), record(model, site) as seen:
        model(*inputs)
    [values] = seen.values()
    if len(values) != 1 or not isinstance(values[0], Tensor):
        raise Refused(f"site {site!r}: must pass one tensor once, passed {len(values)} times {_form(values[0])}")
    value = values[0]

    def rest(z: Tensor) -> Any:
        copies = len(z) // len(value)
        if z.shape != (copies * len(value), *value.shape[1:]):
            raise Refused(f"site {site!r}: holds {tuple(value.shape)} or copies of that, got {tuple(z.shape)}")
        repeated = [_each(lambda x: x.repeat(copies, *[1] * (x.ndim - 1)), x) if copies > 1 else x for x in inputs]
        with _hooks([(place, lambda _: z) for place in _find(model, [site])]):
            return model(*repeated)

    return value, rest


@dataclass(frozen=True)
class _Place:
    """Where a hook goes: what `module` puts out, or its arguments, or a part of either. `given` is what was asked for by name."""

    given: str
    name: str
    module: nn.Module
    entering: bool
    keys: tuple[int | str, ...]


def _find(model: nn.Module, names: Iterable[str]) -> list[_Place]:
    """The places that names and patterns match."""
    modules = _modules(model)
    return [place for name in names for place in _match(modules, name)]


def _match(modules: dict[str, nn.Module], name: str) -> list[_Place]:
    parts = NAME.fullmatch(name)
    if parts is None:
        raise Refused(f"site {name!r}: must be a submodule's path, then :in for its arguments, then [key] for a part")
    path = parts["path"]
    found = [path] if path in modules else []
    if "*" in path:
        wanted = re.compile(re.escape(path).replace(r"\*\*", ".+").replace(r"\*", r"[^.]+"))
        matching = [known for known in modules if wanted.fullmatch(known)]
        found = [known for known in matching if type(modules[known]).forward is not nn.Module.forward]
    if not found:
        known = sorted(filter(None, modules))
        hint = nearest(path, known) or f" (allowed: {', '.join(known[:20]) or 'the model itself, as an empty name'})"
        raise Refused(f"sites: the model has no submodule {path!r}{hint}")
    keys = tuple(int(key) if re.fullmatch(r"-?\d+", key) else key for key in re.findall(r"\[([^\[\]]+)\]", parts["keys"]))
    return [_Place(name, known + name[len(path) :], modules[known], bool(parts["entering"]), keys) for known in found]


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """All submodules by all their names; `Refused` if compiled code would pass the hooks by."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise Refused(
                f"model: {name or 'it'!r} is compiled by torch.compile, which passes hooks by; give the module that was compiled"
            )
    return modules


@contextmanager
def _hooks(acts: list[tuple[_Place, Callable[[Any], Any]]]) -> Iterator[None]:
    """Let each act see, and change, what passes its place. If there is no exception, each name given must have run by the end."""
    silent = {place.given for place, _ in acts}
    live = True  # hooks that outlive the block, in a copy of the model or in compiled code, do nothing

    def hook(place: _Place, act: Callable[[Any], Any]) -> Callable[[], None]:
        def at(value: Any) -> Any:
            if torch.compiler.is_compiling():
                raise Refused(f"site {place.name!r}: torch.compile cannot see hooks; call the model uncompiled inside the block")
            silent.discard(place.given)
            return act(value)

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            return _at(place, place.keys, output, at) if live else None

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not live:
                return None
            keys = place.keys or (0,)
            if not place.keys and not args:
                raise Refused(f"site {place.name!r}: called by keywords only; name one of them: {', '.join(kwargs)}")
            if isinstance(keys[0], str):
                return args, _at(place, keys, kwargs, at)
            return _at(place, keys, args, at), kwargs

        if place.entering:
            return place.module.register_forward_pre_hook(before, with_kwargs=True).remove
        return place.module.register_forward_hook(after).remove

    with ExitStack() as stack:
        for place, act in acts:
            stack.callback(hook(place, act))
        try:
            yield
        finally:
            live = False
    for name in sorted(silent):
        raise Refused(f"site {name!r}: never ran inside the block (not called by the forward pass, or run as compiled code)")


def _at(place: _Place, keys: tuple[int | str, ...], tree: Any, act: Callable[[Any], Any]) -> Any:
    """`tree` with act(part) in the place of the part that the keys lead to."""
    if not keys:
        return act(tree)
    key: Any = keys[0]
    try:
        part = tree[key]
    except (LookupError, TypeError):
        raise Refused(f"site {place.name!r}: holds {_form(tree)}, which has no part [{key}]") from None
    new = _at(place, keys[1:], part, act)
    if new is part:
        return tree
    if isinstance(tree, Tensor):
        raise Refused(f"site {place.name!r}: holds {_form(tree)}; name the tensor and change a part of it by a mask")
    if isinstance(tree, tuple):
        parts = list(tree)
        parts[key] = new
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    changed = copy.copy(tree)
    changed[list(tree)[key] if isinstance(tree, Mapping) and key not in tree else key] = new
    return changed


def _each(function: Callable[[Tensor], Any], value: Any) -> Any:
    return function(value) if isinstance(value, Tensor) else tree_map_only(Tensor, function, value)


def _differentiable(x: Tensor) -> Tensor:
    return x.detach().requires_grad_() if x.is_floating_point() and not x.requires_grad else x


def _edit(given: Any) -> Edit:
    if isinstance(given, Edit):
        return given
    return change(given) if callable(given) and not isinstance(given, Tensor) else replace(given)


def _constant(name: str, given: Any, x: Tensor) -> Tensor:
    """A constant that goes with x: its type and device, no gradient."""
    constant = torch.tensor(given, dtype=torch.float64) if isinstance(given, float) else torch.as_tensor(given)
    if not _fits(constant, x):
        raise Refused(f"site {name!r}: a value of shape {tuple(constant.shape)} does not fit the site's {tuple(x.shape)}")
    if not torch.can_cast(constant.dtype, x.dtype):
        raise Refused(f"site {name!r}: a value of {constant.dtype} does not fit the site's {x.dtype}")
    return constant.detach().to(x)


def _mask(name: str, where: Tensor, x: Tensor) -> Tensor:
    if where.dtype != torch.bool or not _fits(where, x):
        raise Refused(
            f"site {name!r}: the mask must be boolean and fit {tuple(x.shape)}, got {where.dtype} of {tuple(where.shape)}"
        )
    return where.to(x.device)


def _fits(given: Tensor, x: Tensor) -> bool:
    return given.ndim <= x.ndim and all(n in (1, m) for n, m in zip(reversed(given.shape), reversed(x.shape), strict=False))


def _form(value: Any) -> str:
    """What a value is, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(map(str, value))}"
    return f"a {type(value).__name__} of {len(value)} parts" if isinstance(value, list | tuple) else f"a {type(value).__name__}"

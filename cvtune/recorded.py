"""Work that is the same every time, recorded once and launched as a whole (a CUDA graph).

Forward and backward pass of a small network are hundreds of kernels of a few microseconds each: a CPU cannot launch
them as fast as a GPU is through with them. A recording is launched by one call. It reads and writes the same memory
each time, so what goes in is copied to where it looks, and what comes out is valid until the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from cvtune.mixing import Mixed

WARM = 3  # times that a pass is done before it is recorded: kernels are chosen, libraries make room for themselves
WORTH = 20  # batches that a recording has to be good for: to make it takes as long as some ten of them

Tensors = tuple[Tensor, ...]
Forward = Callable[[Mixed], tuple[Tensor, Tensor]]  # a batch -> its mean loss (scalar) and logits


class Habit:
    """Tells when work that comes again and again is worth recording."""

    def __init__(self, warm: int = WARM, worth: int = WORTH) -> None:
        """`warm`: times that it is done before; `worth`: times that it has to come up, before or after."""
        self._warm, self._worth = warm, worth
        self._shapes: dict[Hashable, int] = {}
        self._alike: dict[Hashable, int] = {}

    def pays(self, shape: Hashable, setting: Hashable, left: int) -> bool:
        """Whether to record now; to be asked before each time that the work is done.

        Args:
            shape: what the device chooses kernels by.
            setting: what else the work depends on.
            left: how often it will come up for sure, this time included.
        """
        done, alike = self._shapes.get(shape, 0), self._alike.get((shape, setting), 0)
        self._shapes[shape] = done + 1
        if len(self._alike) > 16:
            self._alike.clear()  # settings that were left seldom come back
        self._alike[shape, setting] = alike + 1
        return done >= self._warm and max(left, alike) >= self._worth


class Recording:
    """A function of tensors that calls the same kernels each time, whatever the tensors hold.

    It is called once while it is recorded, without effect: what it changes in place (averages of batch norm) changes
    at each call of the recording only. Random numbers of the device's own generator are new at each call.

    Attributes:
        given: the tensors that a call writes its arguments to.
        made: what the function returned: overwritten by each call.
    """

    def __init__(self, function: Callable[..., Tensors], like: Sequence[Tensor]) -> None:
        """`function` has been called before on such tensors, at least once. `like` are examples; they are copied.

        Raises:
            RuntimeError: it cannot be recorded, since it waits for the device, say; torch.OutOfMemoryError among them.
        """
        self._function = function  # keeps alive what it has captured, to which the recording points
        self.given = tuple(tensor.clone() for tensor in like)
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # others pin batches meanwhile
            self.made = function(*self.given)

    def __call__(self, *tensors: Tensor) -> Tensors:
        """Do it again with other tensors of the same shapes; returns `made`."""
        for place, tensor in zip(self.given, tensors, strict=True):
            place.copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self.made


class Repeated:
    """Calls a function of tensors again and again, recorded as soon as that pays; what cannot be never is."""

    def __init__(self, allowed: bool, warm: int = WARM, worth: int = WORTH) -> None:
        """`allowed`: whether recording may be tried at all; see `Habit`."""
        self._allowed, self._habit = allowed, Habit(warm, worth)
        self._setting: Hashable = None
        self._recording: Recording | None = None

    def __call__(self, function: Callable[..., Tensors], setting: Hashable, left: int, *tensors: Tensor) -> Tensors:
        """What `function` makes of tensors, valid until the next call.

        Args:
            setting: what it depends on beside tensors.
            left: calls alike that are still to come for sure, this one included.
        """
        shape = tuple(tensor.shape for tensor in tensors)
        if self._recording is not None and self._setting == (setting, shape):
            return self._recording(*tensors)
        if not self._allowed or not self._habit.pays(shape, setting, left):
            return function(*tensors)
        self._recording = None  # its memory is wanted again
        try:
            self._recording, self._setting = Recording(function, tensors), (setting, shape)
        except RuntimeError as error:
            self._allowed = False
            _say(error)
            return function(*tensors)
        return self._recording(*tensors)


def _say(error: RuntimeError) -> None:
    print(f"kernels are launched one by one, as they cannot be recorded: {str(error).splitlines()[0]}")


class RecordedPass:
    """Forward and backward pass of whole batches, recorded as soon as that pays.

    A recording holds for one setting (what is dropped, smoothed, frozen) and batches of one shape; the last batch of a
    pass, which may be smaller, goes the ordinary way. After a change of the setting all batches do until it pays again,
    and what cannot be recorded does for good.
    """

    def __init__(self, module: nn.Module, allowed: bool) -> None:
        """`allowed`: whether recording may be tried at all."""
        self.allowed = allowed
        self._parameters = list(module.parameters())
        self._setting: Hashable = None
        self._shape: Hashable = None
        self._habit = Habit()
        self._recording: Recording | None = None
        self._gradients: list[Tensor | None] = []

    def __call__(
        self,
        mixed: Mixed,
        setting: Hashable,
        left: int,
        forward: Forward,
        scaled: Callable[[Tensor], Tensor],
        adds: bool,
    ) -> tuple[Tensor, Tensor] | None:
        """Loss (scalar) and logits of a batch, its gradients added to those that the parameters have.

        Args:
            mixed: the batch.
            setting: what `forward`, and the shape of a whole batch, depend on beside tensors.
            left: batches of this pass that are still to come, this one included.
            forward: the batch's `share` may be a tensor there; has to keep alive every tensor that it reads.
            scaled: what is differentiated in the place of the loss.
            adds: whether gradients of several batches are added before a step.

        Returns:
            None: nothing was done, the batch has to go the ordinary way.
        """
        if not self.allowed:
            return None
        parts = _parts(mixed)
        shape = tuple((name, part.shape, part.dtype, part.stride()) for name, part in parts.items())
        if self._recording is None or self._setting != setting:
            if not self._habit.pays(shape, setting, left):
                return None
            self._record(parts, forward, scaled)
            self._setting, self._shape = setting, shape
        if self._recording is None or self._shape != shape:
            return None
        loss, logits = self._recording(*parts.values())
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is not None:
                parameter.grad.add_(gradient)
            else:
                parameter.grad = gradient.clone() if adds else gradient
        return loss, logits

    def _record(
        self,
        parts: dict[str, Tensor],
        forward: Forward,
        scaled: Callable[[Tensor], Tensor],
    ) -> None:
        names, before = list(parts), [parameter.grad for parameter in self._parameters]

        def there_and_back(*tensors: Tensor) -> Tensors:
            loss, logits = forward(_mixed(dict(zip(names, tensors, strict=True))))
            torch.autograd.backward(scaled(loss))
            return loss.detach(), logits.detach()

        self._recording, self._gradients = None, []  # its memory is wanted again
        for parameter in self._parameters:
            parameter.grad = None  # so that the recording writes gradients and adds to none
        torch.cuda.empty_cache()
        try:
            self._recording = Recording(there_and_back, list(parts.values()))
            self._gradients = [parameter.grad for parameter in self._parameters]
        except RuntimeError as error:
            self.allowed = False
            _say(error)
        finally:
            for parameter, gradient in zip(self._parameters, before, strict=True):
                parameter.grad = gradient


def _parts(mixed: Mixed) -> dict[str, Tensor]:
    """The tensors of a batch, by name; what a batch without mixing has twice comes once."""
    parts = {"x": mixed.x, "y_a": mixed.y_a}
    if mixed.w_a is not None:
        parts["w_a"] = mixed.w_a
    if mixed.y_b is not mixed.y_a:
        parts |= {"y_b": mixed.y_b, "share": torch.full((), mixed.share, device=mixed.x.device)}
        if mixed.w_b is not None:
            parts["w_b"] = mixed.w_b
    return parts


def _mixed(parts: dict[str, Tensor]) -> Mixed:
    y_a, w_a = parts["y_a"], parts.get("w_a")
    share = parts.get("share", 1.0)
    return Mixed(parts["x"], y_a, parts.get("y_b", y_a), share, w_a, parts.get("w_b", w_a))  # type: ignore[arg-type]

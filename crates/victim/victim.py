"""Your network or your defense as a victim: the protocol `victim` 1.0 for Python, in one file (numpy and torch).

    import torch, victim

    net = torch.load("mine.pt", weights_only=False).eval()

    def model(x, rng):                              # x (n, 3, h, w) in [0, 1]; rng draws for each row by itself
        return net((x + 0.25 * rng.normal(x.shape) - 0.5) / 0.5)

    victim.serve(model, shape=(3, 32, 32), classes=10, weights=["mine.pt"])

For a transformation alone, in front of a network that somebody else has: `victim.serve_transformation(f)`. A step without
a derivative is told by `@victim.bpda`. What a program prints goes to the log. PROTOCOL.md, beside this file, says what is
spoken; `pip install ./crates/victim` installs this file.
"""

import hashlib
import inspect
import json
import math
import mmap
import os
import pathlib
import platform
import random as _random
import struct
import sys
import traceback

import numpy as np
import torch

__version__ = "1.0.0"
PROTOCOL = "1.0"
__all__ = ["serve", "serve_transformation", "bpda", "Rng"]


# --- Random numbers: Philox4x32-10 (Salmon et al. 2011), the product's own bits ------------------------------------------

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_DERIVE = 1 << 31
# Rows are drawn some at a time, so that what is worked on stays in the cache.
_AT_ONCE = 1 << 14


def _f32(x):
    return float(np.float32(x))


# Constants of the logarithm, and of sine and cosine: the Cephes polynomials in single precision, the highest power first.
_ROOT_HALF, _TWO_32, _MANTISSA = 0x3F3504F3, 32 << 23, 0x007FFFFF
_LOG = [
    _f32(sign * 2 * _f32(x))
    for sign, x in zip(
        (-1, 1, -1, 1, -1, 1, -1, 1, -1),
        (7.0376836e-2, 1.151461e-1, 1.1676999e-1, 1.2420141e-1, 1.4249323e-1, 1.6668058e-1, 2.0000715e-1, 2.4999994e-1, 3.333333e-1),
    )
]
_LN_4 = (_f32(2 * _f32(0.6933594)), _f32(-2 * _f32(2.1219444e-4)))
_SIN = [_f32(x) for x in (-1.9515296e-4, 8.332161e-3, -1.6666655e-1)]
_COS = [_f32(x) for x in (2.4433157e-5, -1.3887316e-3, 4.1666646e-2)]
_TURN = _f32(_f32(2 * math.pi) / 17179869184.0)


def _philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds on words in int64, of which only the lower halves are read. (n, m) counters, (n, 1) keys."""
    for _ in range(10):
        a, b = (c0 & _LOW).mul_(_MULTIPLIERS[0]), (c2 & _LOW).mul_(_MULTIPLIERS[1])
        c0, c2 = (b >> 32).bitwise_xor_(c1).bitwise_xor_(k0), (a >> 32).bitwise_xor_(c3).bitwise_xor_(k1)
        c1, c3 = b, a
        k0, k1 = k0 + _WEYL[0] & _LOW, k1 + _WEYL[1] & _LOW
    return c0 & _LOW, c1 & _LOW, c2 & _LOW, c3 & _LOW


def _radius(a):
    """sqrt(-2 ln u) for u = (a + 1/2) / 2^32, every operation rounded by itself."""
    bits = a.to(torch.float32).add_(0.5).view(torch.int32) - (_ROOT_HALF + _TWO_32)
    e = (bits >> 23).to(torch.float32)
    m = bits.bitwise_and_(_MANTISSA).add_(_ROOT_HALF).view(torch.float32).sub_(1.0)
    z = m * m
    p = torch.full_like(m, _LOG[0])
    for c in _LOG[1:]:
        p.mul_(m).add_(c)
    y = p.mul_(m).mul_(z).sub_(e * _LN_4[1]).add_(z)
    return y.sub_(m.mul_(2.0)).sub_(e.mul_(_LN_4[0])).sqrt_()


def _sin_cos(b):
    """Sine and cosine of b / 2^32 turns: of what is left of the nearest quarter, then turned by quarters."""
    x = (b << 2).to(torch.int32).to(torch.float32).mul_(_TURN)
    z = x * x
    sin = (z * _SIN[0]).add_(_SIN[1]).mul_(z).add_(_SIN[2]).mul_(z).mul_(x).add_(x)
    cos = (z * _COS[0]).add_(_COS[1]).mul_(z).add_(_COS[2]).mul_(z).mul_(z).sub_(z * 0.5).add_(1.0)
    turned = b + (1 << 29)
    odd = (turned & 1 << 30) != 0
    sign_sin = (turned & 1 << 31).to(torch.int32)
    sign_cos = (turned.add_(1 << 30) & 1 << 31).to(torch.int32)
    one, other = torch.where(odd, cos, sin), torch.where(odd, sin, cos)
    one.view(torch.int32).bitwise_xor_(sign_sin)
    other.view(torch.int32).bitwise_xor_(sign_cos)
    return one, other


class Rng:
    """Random numbers for `n` rows, each from a key of its own: a row draws the same in any batch, shard or run.

    Every call draws further numbers. `shape` is that of the result, its first side the rows.
    """

    def __init__(self, keys, device="cpu"):
        """`keys` (n, 4): 32-bit words, one key per row."""
        self.keys = torch.as_tensor(np.asarray(keys).astype(np.int64), device=device).reshape(-1, 4)
        self.device = self.keys.device
        self._block = 0

    def __len__(self):
        return len(self.keys)

    def child(self, index):
        """The generator of child `index` of every row's key: another stream, as the product derives keys."""
        k0, k1, h0, h1 = (self.keys[:, i : i + 1] for i in range(4))
        low, high = (torch.full_like(k0, word) for word in (index & _LOW, index >> 32 | _DERIVE))
        child = Rng(np.empty((0, 4)), self.device)
        child.keys = torch.cat(_philox(low, high, h0, h1, k0, k1), 1)
        return child

    def _shape(self, shape):
        shape = tuple(shape) if hasattr(shape, "__iter__") else (shape,)
        if not shape or shape[0] != len(self):
            raise ValueError(f"rng: the first side of {shape} must be the {len(self)} rows")
        return shape

    def _draw(self, shape, dtype, make):
        """Draws whole blocks of four words for each row, and lets `make` turn them into numbers."""
        shape = self._shape(shape)
        count = math.prod(shape[1:])
        blocks = -(-count // 4)
        out = torch.empty((len(self), blocks, 4), dtype=dtype, device=self.device)
        index = torch.arange(self._block, self._block + blocks, device=self.device)[None]
        self._block += blocks
        rows = max(1, _AT_ONCE // max(blocks, 1)) if self.device.type == "cpu" else max(len(self), 1)
        for first in range(0, len(self), rows):
            k0, k1, h0, h1 = (self.keys[first : first + rows, i : i + 1] for i in range(4))
            n = len(k0)
            counters = (index & _LOW, index >> 32, h0, h1)
            words = _philox(*(c.expand(n, blocks) for c in counters), k0, k1)
            make(words, out[first : first + rows])
        return out.view(len(self), -1)[:, :count].reshape(shape)

    def normal(self, shape):
        """Standard normal numbers, float32 (Box-Muller); the product's own within a rounding: PyTorch's logarithm differs."""

        def make(words, out):
            for i in (0, 2):
                radius, (sin, cos) = _radius(words[i]), _sin_cos(words[i + 1])
                torch.mul(radius, cos, out=out[..., i])
                torch.mul(radius, sin, out=out[..., i + 1])

        return self._draw(shape, torch.float32, make)

    def uniform(self, shape, low=0.0, high=1.0):
        """Uniform numbers in [low, high), float32, of 24 random bits."""

        def make(words, out):
            for i, word in enumerate(words):
                torch.mul((word >> 8).to(torch.float32), 1 / (1 << 24), out=out[..., i])

        unit = self._draw(shape, torch.float32, make)
        return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit

    def integers(self, low, high, shape):
        """Uniform integers in [low, high), int64; high - low is at most 2^31."""
        if not 0 < high - low <= 1 << 31:
            raise ValueError(f"rng: no integer in [{low}, {high})")

        def make(words, out):
            for i, word in enumerate(words):
                out[..., i] = (word * (high - low) >> 32) + low

        return self._draw(shape, torch.int64, make)

    def bernoulli(self, p, shape):
        """True with probability p."""
        return self.uniform(shape) < p

    def permutation(self, size):
        """A random order of 0..size for every row, (n, size)."""
        return torch.argsort(self.uniform((len(self), size)), dim=1, stable=True)

    def numpy(self, row):
        """A numpy generator of row `row`'s own, seeded by its key."""
        return np.random.default_rng([int(word) for word in self.keys[row]])


# --- Gradients past what has none ----------------------------------------------------------------------------------------


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, f, surrogate, others):
        ctx.save_for_backward(x)
        ctx.surrogate, ctx.others = surrogate, others
        with torch.no_grad():
            y = f(x, *others)
        return y.clone() if y is x else y

    @staticmethod
    def backward(ctx, above):
        (x,) = ctx.saved_tensors
        if ctx.surrogate is None:
            if above.shape != x.shape:
                raise ValueError(f"bpda: from {tuple(x.shape)} to {tuple(above.shape)} there is no identity: name a surrogate")
            return above, None, None, None
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (below,) = torch.autograd.grad(ctx.surrogate(x, *ctx.others), x, above)
        return below, None, None, None


def bpda(f=None, *, surrogate=None):
    """Backward-pass differentiable approximation (Athalye et al. 2018): `f` forwards, and backwards the identity or `surrogate`.

    `@victim.bpda` on a function of `x` and whatever else it takes, or `@victim.bpda(surrogate=g)`, `g` taking the same.
    """

    def wrap(f):
        return lambda x, *others: _Straight.apply(x, f, surrogate, others)

    return wrap if f is None else wrap(f)


# --- Messages ------------------------------------------------------------------------------------------------------------

_TYPES = {"F32": (np.float32, torch.float32), "U32": (np.uint32, None)}
_SHARED_FROM = 1 << 20


class _Pipe:
    """The two pipes, and the memory that both sides have."""

    def __init__(self, numbers):
        self.input, self.output, *memory = (int(number) for number in numbers.split(","))
        self.memory = memory[0] if memory else None
        self.map = None

    def _read(self, n):
        data = bytearray(n)
        view, done = memoryview(data), 0
        while done < n:
            got = os.readv(self.input, [view[done:]])
            if got == 0:
                raise EOFError
            done += got
        return data

    def _write(self, data):
        view = memoryview(data).cast("B")
        while view:
            view = view[os.write(self.output, view) :]

    def _mapped(self):
        size = os.fstat(self.memory).st_size
        if self.map is None or len(self.map) < size:
            self.map = mmap.mmap(self.memory, size)
        return self.map

    def read(self):
        """Facts (strings by name, `op` and `id` among them) and arrays by name."""
        (length,) = struct.unpack("<Q", self._read(8))
        blob = self._read(length)
        (head,) = struct.unpack_from("<Q", blob)
        header = json.loads(blob[8 : 8 + head])
        facts = header.pop("__metadata__", {})
        arrays = {}
        for name, about in header.items():
            begin, end = about["data_offsets"]
            flat = np.frombuffer(blob, _TYPES[about["dtype"]][0], (end - begin) // 4, 8 + head + begin)
            arrays[name] = flat.reshape(about["shape"])
        for about in json.loads(facts.get("shared", "[]")):
            kind, count = _TYPES[about["dtype"]][0], math.prod(about["shape"])
            # A copy: the next request is written over it.
            flat = np.frombuffer(self._mapped(), kind, count, about["offset"]).copy()
            arrays[about["name"]] = flat.reshape(about["shape"])
        return facts, arrays

    def write(self, facts, tensors, room=""):
        arrays = {name: np.ascontiguousarray(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()}
        size = sum(array.nbytes for array in arrays.values())
        if room and size >= _SHARED_FROM:
            offset, free = (int(number) for number in room.split(","))
            if size <= free:
                facts, arrays = dict(facts, shared=self._share(arrays, offset)), {}
        header, end = {"__metadata__": {name: str(text) for name, text in facts.items()}}, 0
        for name, array in arrays.items():
            header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [end, end + array.nbytes]}
            end += array.nbytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._write(struct.pack("<QQ", 8 + len(text) + end, len(text)) + text)
        for array in arrays.values():
            self._write(array.reshape(-1))

    def _share(self, arrays, offset):
        places = []
        for name, array in arrays.items():
            np.frombuffer(self._mapped(), np.float32, array.size, offset)[:] = array.reshape(-1)
            places.append({"name": name, "dtype": "F32", "shape": array.shape, "offset": offset})
            offset += array.nbytes
        return json.dumps(places)


# --- Serving -------------------------------------------------------------------------------------------------------------


def serve(model, *, shape=None, classes, range=(0, 1), random=True, draws=None, batch=None, weights=(), device="cpu"):
    """Serves a whole defended classifier; does not return before nobody asks any more.

    model    `model(x, rng)` or `model(x)`: images (n, c, h, w), float32, to logits (n, classes). Row i must depend on row i
             alone: networks are in evaluation mode, and `rng` draws for each row by itself (see `Rng`).
    shape    channels, rows and columns of an image; None for any.
    range    the values that its pixels range over: (0, 1), or what it was trained with, as (-1, 1) or (0, 255). Images
             arrive in that range.
    random   whether it draws anything.
    draws    for a `model(x)` that draws by torch, numpy or random itself: "row" seeds these for every row (exact, and slow:
             rows are computed one by one), "batch" for every batch (fast, but a row's draws then depend on its batch, which
             every table says). "row" unless given.
    batch    the most rows it can take at a time; None for any number.
    weights  files that it has read: their digests are kept with every result.
    device   where it computes, as "cuda".
    """
    _Server(model, "logits", shape, classes, range, random, draws, batch, weights, device).run()


def serve_transformation(transform, *, shape=None, range=(0, 1), random=True, draws=None, batch=None, weights=(), device="cpu"):
    """Serves a transformation: images (n, c, h, w) to images (n, c, h', w'). Everything else is as in `serve`."""
    _Server(transform, "apply", shape, None, range, random, draws, batch, weights, device).run()


class _Server:
    def __init__(self, f, operation, shape, classes, range, random, draws, batch, weights, device):
        self.f, self.operation, self.classes, self.shape = f, operation, classes, shape
        self.range, self.random, self.batch, self.weights, self.device = range, random, batch, weights, device
        takes_rng = _takes_rng(f)
        if draws not in (None, "row", "batch") or (draws and takes_rng):
            raise ValueError(f'draws={draws!r}: "row" or "batch", and only for a function of x alone')
        self.mode = "rng" if takes_rng else (draws or "row") if random else "certain"
        self.kept = {}
        if os.environ.get("VICTIM_THREADS"):
            torch.set_num_threads(int(os.environ["VICTIM_THREADS"]))

    def run(self):
        if "VICTIM_FDS" not in os.environ:
            return self.rehearse()
        pipe = _Pipe(os.environ["VICTIM_FDS"])
        while True:
            try:
                facts, arrays = pipe.read()
            except EOFError:
                return
            op, reply, tensors = facts["op"], {}, {}
            try:
                reply, tensors = self.answer(op, facts, arrays)
            except Exception as error:
                traceback.print_exc()
                op, reply = "error", {"text": f"{type(error).__name__}: {error}"}
            pipe.write({"op": op, "id": facts["id"], **reply}, tensors, facts.get("room", ""))

    def answer(self, op, facts, arrays):
        if op == "hello":
            return self.hello(facts), {}
        if op == self.operation:
            return self.forward(facts, arrays)
        if op == "pull":
            return self.pull(facts, arrays)
        if op == "forget":
            self.kept.pop(facts["of"], None)
            return {}, {}
        raise ValueError(f"unknown operation {op}")

    def hello(self, facts):
        hello = {
            "protocol": PROTOCOL,
            "features": "shared" if "shared" in facts.get("features", "").split(",") else "",
            "operations": f"{self.operation},pull",
            "range": ",".join(repr(float(end)) for end in self.range),
            "random": "true" if self.random else "false",
            "draws": "batch" if self.mode == "batch" else "row",
            "digests": json.dumps(self.digests()),
            "versions": json.dumps({"victim.py": __version__, "torch": torch.__version__, "numpy": np.__version__,
                                    "python": platform.python_version()}),
        }
        optional = {"shape": self.shape and ",".join(map(str, self.shape)), "classes": self.classes, "batch": self.batch}
        return {**hello, **{name: str(value) for name, value in optional.items() if value}}

    def digests(self):
        """Of the script, of the modules beside it, of this file, and of the weights."""
        files = {pathlib.Path(path) for path in self.weights} | {pathlib.Path(__file__)}
        script = getattr(sys.modules["__main__"], "__file__", None)
        if script:
            folder = pathlib.Path(script).resolve().parent
            loaded = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
            files |= {pathlib.Path(file) for file in loaded if file and pathlib.Path(file).resolve().parent == folder}
            files.add(pathlib.Path(script))
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files) if file.is_file()}

    def compute(self, x, keys):
        """The function on rows x with keys (n, 4)."""
        if self.mode == "rng":
            return self.f(x, Rng(keys, x.device))
        if self.mode == "certain":
            return self.f(x)
        if self.mode == "batch":
            _seed(int.from_bytes(hashlib.sha256(keys.tobytes()).digest()[:8], "little") >> 1)
            return self.f(x)
        rows = []
        for i, key in enumerate(keys):
            _seed(int(key[0]) | (int(key[1]) & 0x7FFFFFFF) << 32)
            rows.append(self.f(x[i : i + 1]))
        return torch.cat(rows)

    def forward(self, facts, arrays):
        keys, keep = arrays["keys"], facts.get("keep") == "true"
        (images, draws), rows = keys.shape[:2], keys.shape[0] * keys.shape[1]
        x = torch.from_numpy(arrays["x"]).to(self.device)
        x = x.repeat_interleave(draws, 0) if draws > 1 else x
        with torch.set_grad_enabled(keep):
            x.requires_grad_(keep)
            y = self.compute(x, keys.reshape(rows, 4))
        name, wanted = ("logits", (rows, self.classes)) if self.operation == "logits" else ("images", (rows, x.shape[1]))
        if not torch.is_tensor(y) or y.dim() != (2 if name == "logits" else 4) or tuple(y.shape[:2]) != wanted:
            found = tuple(y.shape) if torch.is_tensor(y) else type(y).__name__
            raise ValueError(f"your function gives {found} for images {tuple(x.shape)}: it must begin with {wanted}")
        if keep:
            self.kept[facts["id"]] = (x, y, images, draws)
        return {}, {name: y.to(torch.float32).reshape(images, draws, *y.shape[1:])}

    def pull(self, facts, arrays):
        last = facts.get("last") == "true"
        x, y, images, draws = self.kept.pop(facts["of"]) if last else self.kept[facts["of"]]
        above = torch.from_numpy(arrays["cotangent"]).to(y).reshape(y.shape)
        below = None
        if y.requires_grad:
            (below,) = torch.autograd.grad(y, x, above, allow_unused=True, retain_graph=not last)
        cut = below is None
        below = torch.zeros_like(x) if cut else below
        below = below.reshape(images, draws, *x.shape[1:])
        below = below.mean(1) if facts.get("reduce", "mean") == "mean" else below
        return ({"cut": "true"} if cut else {}), {"gradient": below}

    def rehearse(self):
        """Started by hand: asks itself once, and says what came of it."""
        x = torch.rand((2, *(self.shape or (3, 32, 32))), generator=torch.Generator().manual_seed(0)).numpy()
        x = (self.range[0] + (self.range[1] - self.range[0]) * x).astype(np.float32)
        keys = np.arange(8, dtype=np.uint32).reshape(2, 1, 4)
        name = "logits" if self.operation == "logits" else "images"
        once = self.forward({"id": "1", "keep": "true"}, {"x": x.copy(), "keys": keys})[1][name].detach().clone()
        facts, tensors = self.pull({"of": "1", "last": "true"}, {"cotangent": np.ones(once.shape, np.float32)})
        with torch.no_grad():
            again = self.forward({"id": "2"}, {"x": x.copy(), "keys": keys})[1][name]
            other = self.forward({"id": "3"}, {"x": x.copy(), "keys": keys + 1})[1][name]
        print(f"{name} {tuple(once[:, 0].shape)} of images {x.shape}; the same key draws the same: {torch.equal(once, again)};")
        print(f"another key draws another: {not torch.equal(once, other)}; draws by {self.mode};", end=" ")
        print("no gradient" if facts.get("cut") else f"length of a gradient {tensors['gradient'].norm():.3g}")
        part = "model" if self.operation == "logits" else "defense"
        command = json.dumps(["python3", *sys.argv])
        print(f'In a pipeline: {part} = {{ name = "program", command = {command} }}')


def _takes_rng(f):
    """Whether a function takes a second argument that it must be given, or one named `rng`."""
    parameters = inspect.signature(f.forward if isinstance(f, torch.nn.Module) else f).parameters
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters.values() if p.kind in kinds and p.default is p.empty]
    return len(needed) >= 2 or "rng" in parameters


def _seed(seed):
    torch.manual_seed(seed)
    _random.seed(seed)
    np.random.seed(seed & _LOW)

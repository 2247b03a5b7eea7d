"""PyTorch's side: gradient queries per second of each work and variant, as one JSON object.

The argument is JSON: the device, whether to use torch.compile, the seconds of a measurement, those after which nothing more
is compiled, and the works (model, side, batch). A variant belongs to a precision: f32 without TF32, tf32, or bf16 (automatic mixed precision).
"""

import json
import sys
import time


def main(device, compile, seconds, budget, works):
    import torch
    import torchvision

    def rate(net, x, above, amp):
        def query():
            y = x.detach().requires_grad_()
            with torch.autocast(device, torch.bfloat16, enabled=amp):
                logits = net(y)
            return torch.autograd.grad(logits, y, above.to(logits.dtype))[0]

        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        for _ in range(3):
            query()
        wait()
        start, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - start < seconds:
            query()
            wait()
            count += 1
        return count * len(x) / (time.perf_counter() - start)

    started = time.monotonic()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    nets, rates, skipped = {}, [], []
    makers = {
        "eager": lambda net: net,
        "compiled": torch.compile,
        "compiled, CUDA graphs": lambda net: torch.compile(net, mode="reduce-overhead"),
    }
    # Everything eager first: compiling takes long, and the works come in the order of their weight.
    for name, make in makers.items():
        for work in works:
            model, side, batch = work["model"], work["side"], work["batch"]
            if model not in nets:
                plain = getattr(torchvision.models, model.replace("-", ""))().eval().requires_grad_(False)
                nets[model] = plain.to(device=device, memory_format=torch.channels_last)
            x = torch.rand(batch, 3, side, side).to(device=device, memory_format=torch.channels_last)
            above = torch.ones(batch, 1000, device=device)
            for precision in ("tf32", "bf16", "f32"):
                torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
                about = {"model": model, "side": side, "batch": batch, "precision": precision}
                variant = f"{name}, channels_last, {precision}"
                late = time.monotonic() - started > budget
                if name != "eager" and (late or not compile):
                    skipped.append(f"{variant} of {model}, {batch} images: {'no time left' if compile else 'left out'}")
                    continue
                try:
                    if name != "eager":
                        torch._dynamo.reset()
                    rates.append({**about, "variant": variant, "rate": rate(make(nets[model]), x, above, precision == "bf16")})
                except Exception as error:  # A variant that does not run is no variant; the report says why.
                    skipped.append(f"{variant} of {model}: {str(error).strip().splitlines()[0][:200]}")
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    if device == "cuda":
        versions |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    return {"rates": rates, "skipped": skipped, "versions": versions}


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # What libraries print is no answer.
    try:
        answer = main(**json.loads(sys.argv[1]))
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers)

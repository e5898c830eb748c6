"""Where the time of a tower goes on one CPU thread: the tables of benchmarks/findings/cpu-tower-parts.md.

A script: ``python benchmarks/measure_tower_parts.py [--tower open_clip] [--r 8] [--rounds 12]``. Every operator of
every form is timed by the form's own profiler in each of several calls. A part's time is the sum over its operators
of the shortest of these times, so that what a neighbour takes on the way falls out. Prints milliseconds per image.

The last column is the CPU time of a call without a profiler. On a quiet machine the parts add up to it, but for Python
between the operators. On a busy one no long product runs undisturbed: there take the products as what the other parts
leave of the CPU time.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads

import argparse
import json
import re
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import runtimes
import torch
import tower_forms
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from tower_forms import OURS, UNMERGED

from alt.measure import keep_freed_memory, time_call
from alt.tables import to_markdown

#: One operator of one call: what it is (name, and for a product the ranks of its inputs), and microseconds.
Operator = tuple[str, float]
Profile = tuple[list[list[Operator]], float]

#: The first pattern that is found in an operator's name says to which part it belongs.
PARTS = (
    ("attention", r"attention|mha|softmax|bmm|rescale_qkv|rank 4"),
    ("matching and merging", r"alt_kernels|topk|gather|scatter|sort|argmax|reducemax|rank 3"),
    ("GELU", r"gelu|sigmoid"),
    ("products", r"addmm|::mm|linear|gemm|matmul|fullyconnected|conv"),
    ("sums and LayerNorm", r"layer_?norm|normalization|mvn|add|sub|mul|div|eltwise|subgraph"),
    ("copies", r"copy|cat|concat|reorder|transpose|permute|contiguous|split|slice|reshape|clone"),
)
REST = "the rest"


def part_of(name: str) -> str:
    """Returns the part of an operator."""
    return next((part for part, pattern in PARTS if re.search(pattern, name.lower())), REST)


def shortest(calls: Iterable[list[Operator]]) -> dict[str, float]:
    """Returns milliseconds per part: operators are matched by their place in the call, the shortest time counts."""
    found = dict.fromkeys([part for part, _ in PARTS] + [REST], 0.0)
    for same in zip(*calls, strict=True):
        names = {name for name, _ in same}
        if len(names) > 1:
            raise ValueError(f"calls: expected the same operators in every call, got {sorted(names)} at one place")
        found[part_of(same[0][0])] += min(time for _, time in same) / 1e3
    return found


def profile_torch(call: Callable[[], object], rounds: int) -> list[list[Operator]]:
    """Returns the operators of ``rounds`` calls, each without the operators that it calls itself."""
    calls = []
    for _ in range(rounds + 1):
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as found:
            call()
        events = sorted(found.events(), key=lambda event: (event.time_range.start, -event.time_range.end))
        calls.append([(event.name, event.self_cpu_time_total) for event in events if "::" in event.name])
    return calls[1:]


def profile_onnxruntime(file: Path, images: Tensor, rounds: int) -> list[list[Operator]]:
    with tempfile.TemporaryDirectory() as folder:
        session = runtimes.onnx_session(file, Path(folder) / "profile")
        feed = {session.get_inputs()[0].name: images.numpy()}
        for _ in range(rounds + 1):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time")]
    per_call = len(nodes) // (rounds + 1)
    named = [(onnx_name(node["args"]), float(node["dur"])) for node in nodes]
    return [named[first : first + per_call] for first in range(per_call, len(named), per_call)]


def onnx_name(arguments: dict) -> str:
    """Returns an operator's type, for a product of two activations with their rank: of attention 4, of matching 3."""
    kind, shapes = arguments["op_name"], [next(iter(entry.values())) for entry in arguments["input_type_shape"]]
    activations = "matmul" in kind.lower() and len(shapes) > 1 and len(shapes[0]) == len(shapes[1])
    return f"{kind}, rank {len(shapes[0])}" if activations else kind


def profile_openvino(file: Path, images: Tensor, rounds: int) -> list[list[Operator]]:
    request = runtimes.openvino_request(file, images, profile=True)
    calls = []
    for _ in range(rounds + 1):
        request.infer({0: images.numpy()})
        nodes = request.get_profiling_info()
        times = [(f"{node.node_type} {node.exec_type}", node.real_time.total_seconds() * 1e6) for node in nodes]
        calls.append(times)
    return calls[1:]


def profile_form(name: str, entrant: tower_forms.Entrant, tower: nn.Module, images: Tensor, rounds: int) -> Profile:
    """Returns the operators of every call of an entrant, and the CPU time of a call in milliseconds."""
    module = tower_forms.module_of(entrant.who, tower, entrant.r)
    call = tower_forms.start(entrant, name, module, images)
    call()
    cpu = 1e3 * statistics.median(time_call(call).cpu_seconds for _ in range(rounds))
    if entrant.form not in runtimes.RUNTIMES:
        return profile_torch(call, rounds), cpu
    profiler = {"ONNX Runtime": profile_onnxruntime, "OpenVINO": profile_openvino}[entrant.form]
    file = runtimes.export_once(tower_forms.file_name(name, entrant.who, entrant.r), module, images)
    return profiler(file, images, rounds), cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", choices=list(tower_forms.SUBJECTS), default="open_clip")
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--forms", nargs="+", choices=tower_forms.FORMS, default=list(tower_forms.FORMS))
    parser.add_argument("--operators", action="store_true", help="also the time of every kind of operator")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    subject = tower_forms.SUBJECTS[options.tower]
    tower = tower_forms.build(subject)
    images = torch.randn(1, 3, subject.pixels, subject.pixels)
    forms = [form for form in options.forms if form not in runtimes.RUNTIMES or not runtimes.why_no_runtime(form)]
    rows = []
    for who, r in ((UNMERGED, 0), (OURS, 0), (OURS, options.r)):
        for form in forms:
            if (who, r) == (OURS, 0) and form != tower_forms.EAGER:
                continue  # without merging an export of ours is the unmerged one
            entrant = tower_forms.Entrant(who, r, form)
            calls, cpu = profile_form(options.tower, entrant, tower, images, options.rounds)
            parts = shortest(calls)
            rows.append([tower_forms.row_name(who, r), form, *parts.values(), cpu])
            if options.operators:
                print(to_markdown([str(entrant), "ms"], kinds(calls), digits=2))
    print(to_markdown(["", "form", *parts, "CPU time"], rows, left=2))


def kinds(calls: list[list[Operator]]) -> list[tuple[str, float]]:
    """Returns milliseconds per kind of operator, the largest first."""
    found: dict[str, float] = {}
    for same in zip(*calls, strict=True):
        found[same[0][0]] = found.get(same[0][0], 0.0) + min(time for _, time in same) / 1e3
    return sorted(found.items(), key=lambda kind: -kind[1])[:25]


if __name__ == "__main__":
    main()

"""PTX instructions as Python expressions over registers: the table that :mod:`.translate` puts programs together from.

A rule takes the modifiers of an opcode and the operands' text and gives the value of the destination, as an expression
whose dtype is that of the type it is registered for. What is not in the table is refused by name: a kernel that
begins to use another instruction is a clear error, never a guess.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from .parse import BITS, Instruction, Kernel, address

#: Where dynamic shared memory begins. Not 0, so that an address that forgot it is out of bounds.
SHARED_BASE = 1024

COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED_COMPARE = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
PLAIN = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^"}
SPECIAL = {"%tid.x": "m.thread", "%laneid": "m.lane"} | {f"%ctaid.{axis}": f"m.program['{axis}']" for axis in "xyz"}
SPECIAL |= {f"%nctaid.{axis}": f"m.programs['{axis}']" for axis in "xyz"}


class UnknownInstruction(NotImplementedError):
    """Not among the instructions that are emulated."""


def dtype_of(kind: str) -> str:
    """NumPy's name of a PTX type: u32 for b32, i32 for s32; halves are kept as bits."""
    bits = BITS[kind]
    if kind in ("f32", "f64"):
        return kind
    return f"{'i' if kind[0] == 's' else 'u'}{bits}"


class Operands:
    """Text of operands to expressions."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.places = {name: place for place, name in enumerate(kernel.registers)}
        self.constants: list[tuple[str, int]] = []  # (dtype, bits)

    def constant(self, dtype: str, bits: int) -> str:
        """An array of one element."""
        width = int(dtype[1:])
        value = (f"{'u'}{width}", bits & ((1 << width) - 1))
        if value not in self.constants:
            self.constants.append(value)
        text = f"K[{self.constants.index(value)}]"
        return text if dtype[0] == "u" else f"{text}.view({dtype})"

    def read(self, operand: str, kind: str) -> str:
        """The operand as an array of ``kind``."""
        if kind == "pred":
            if operand in self.places:
                return f"R[{self.places[operand]}]"
            return "TRUE" if int(operand, 0) else "FALSE"
        dtype = dtype_of(kind)
        if operand in self.places:
            bits, text = self.kernel.registers[operand], f"R[{self.places[operand]}]"
            if bits > BITS[kind]:  # stores and conversions take the lowest bits
                text = f"{text}.astype(u{BITS[kind]})"
            elif bits < BITS[kind]:
                raise SyntaxError(f"{operand} has {bits} bits, {kind} was expected")
            return text if dtype[0] == "u" else f"{text}.view({dtype})"
        if operand in SPECIAL:
            return SPECIAL[operand]
        if operand in self.kernel.shared:
            return self.constant(dtype, SHARED_BASE)
        if operand[:2] in ("0f", "0F", "0d", "0D") and len(operand) in (10, 18):
            return self.constant(dtype, int(operand[2:], 16))
        try:
            return self.constant(dtype, int(operand.rstrip("U"), 0))
        except ValueError:
            pass
        if kind == "f32":
            return self.constant(dtype, struct.unpack("<I", struct.pack("<f", float(operand)))[0])
        raise SyntaxError(f"operand {operand!r} is not understood")

    def address(self, operand: str, shared: bool) -> str:
        base, offset = address(operand)
        dtype = "u32" if shared else "u64"
        if base in self.places and self.kernel.registers[base] != (32 if shared else 64):
            raise SyntaxError(f"{operand}: an address register of {self.kernel.registers[base]} bits")
        text = self.read(base, dtype)
        return text if offset == 0 else f"({text} + {self.constant(dtype, offset)})"


Rule = Callable[[Operands, list[str], tuple[str, ...]], str]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    def keep(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return keep


def refuse(mods: list[str], *known: str) -> None:
    """Modifiers change the meaning: an unknown one is an error."""
    if odd := [m for m in mods if m not in known]:
        raise UnknownInstruction(f"modifiers {odd}")


@rule("add", "sub", "and", "or", "xor")
def _plain(o: Operands, mods: list[str], ops: tuple[str, ...]) -> str:
    name, *flags, kind = mods
    a, b = o.read(ops[1], kind), o.read(ops[2], kind)
    refuse(flags, "rn", "ftz")
    if "ftz" in flags:
        return f"flush(flush({a}) {PLAIN[name]} flush({b}))"
    return f"({a} {PLAIN[name]} {b})"


@rule("not", "neg", "abs", "popc", "clz")
def _one(o: Operands, mods: list[str], ops: tuple[str, ...]) -> str:
    name, *flags, kind = mods
    refuse(flags, "ftz")
    a = o.read(ops[1], kind)
    if name in ("popc", "clz"):
        return f"{name}({a})"
    if kind == "f32":  # the sign alone, also of NaN and of zero
        bits = o.read(ops[1], "b32")
        changed = (
            f"{bits} ^ {o.constant('u32', 1 << 31)}" if name == "neg" else f"{bits} & {o.constant('u32', 2**31 - 1)}"
        )
        return f"flush(({changed}).view(f32))" if flags else f"({changed}).view(f32)"
    return {"not": f"~{a}", "neg": f"-{a}", "abs": f"abs({a})"}[name]


@rule("mul", "mad", "fma")
def _multiply(o: Operands, mods: list[str], ops: tuple[str, ...]) -> str:
    name, *flags, kind = mods
    a, b = o.read(ops[1], kind), o.read(ops[2], kind)
    if kind == "f32":
        refuse(flags, "rn", "ftz")
        ftz = "ftz" in flags
        if name == "mul":
            return f"flush(flush({a}) * flush({b}))" if ftz else f"({a} * {b})"
        return f"{'fma_ftz' if ftz else 'fma'}({a}, {b}, {o.read(ops[3], kind)})"
    refuse(flags, "lo", "hi", "wide")
    (part,) = flags
    twice = f"{kind[0]}{2 * BITS[kind]}"
    if part == "wide":
        product = f"({a}.astype({dtype_of(twice)}) * {b}.astype({dtype_of(twice)}))"
        return product if name == "mul" else f"({product} + {o.read(ops[3], twice)})"
    if part == "hi" and BITS[kind] != 32:
        raise UnknownInstruction("the upper half of 64-bit products")
    product = f"({a} * {b})" if part == "lo" else f"mul_hi({a}, {b}, {dtype_of(twice)})"
    return product if name == "mul" else f"({product} + {o.read(ops[3], kind)})"


@rule("div", "rem", "rcp", "sqrt", "rsqrt", "ex2", "lg2")
def _special(o: Operands, mods: list[str], ops: tuple[str, ...]) -> str:
    name, *flags, kind = mods
    arguments = [o.read(x, kind) for x in ops[1:]]
    if kind != "f32":
        refuse(flags)
        return f"{name}_int({', '.join(arguments)})"
    refuse(flags, "rn", "approx", "full", "ftz")
    if "ftz" in flags:
        arguments = [f"flush({a})" for a in arguments]
    exact = "rn" in flags
    text = ", ".join(arguments)
    if name == "div":
        text = f"div_rn({text})" if exact else f"div_full({text})"
    elif name == "sqrt":
        text = f"sqrt({text})" if exact else f"sqrt_approx({text})"
    elif name == "rcp" and exact:
        text = f"div_rn({o.constant('f32', 0x3F800000)}, {text})"
    else:
        text = f"{name}({text})"
    return f"flush({text})" if "ftz" in flags else text


@rule("min", "max")
def _extreme(o: Operands, mods: list[str], ops: tuple[str, ...]) -> str:
    name, *flags, kind = mods
    refuse(flags, "NaN", "ftz")
    a, b = o.read(ops[1], kind), o.read(ops[2], kind)
    if kind != "f32":
        refuse(flags)
        return f"{name}imum({a}, {b})"
    if "ftz" in flags:
        a, b = f"flush({a})", f"flush({b})"
    return f"f{name}{'_nan' if 'NaN' in flags else ''}({a}, {b})"


@rule("shl", "shr")
def _shift(o: Operands, mods: list[str], ops: tuple[str, ...]) -> str:
    name, kind = mods
    a = o.read(ops[1], kind)
    if ops[2] not in o.places and int(ops[2], 0) < BITS[kind]:
        return f"({a} {'<<' if name == 'shl' else '>>'} {o.constant(dtype_of(kind), int(ops[2], 0))})"
    return f"shift_{'left' if name == 'shl' else 'right'}({a}, {o.read(ops[2], 'u32')})"


@rule("shf")
def _funnel(o: Operands, mods: list[str], ops: tuple[str, ...]) -> str:
    _, side, wrap, _ = mods
    return f"shf({', '.join(o.read(x, 'b32') for x in ops[1:])}, {side == 'l'}, {wrap == 'wrap'})"


@rule("bfe", "bfi", "prmt", "lop3")
def _bits(o: Operands, mods: list[str], ops: tuple[str, ...]) -> str:
    name, kind = mods
    if name == "lop3":
        return f"lop3({', '.join(o.read(x, 'b32') for x in ops[1:4])}, {int(ops[4].rstrip('U'), 0)})"
    values = 1 if name == "bfe" else 2
    rest = [o.read(x, "u32") for x in ops[values + 1 :]]
    return f"{name}({', '.join([o.read(x, kind) for x in ops[1 : values + 1]] + rest)})"


@rule("selp")
def _select(o: Operands, mods: list[str], ops: tuple[str, ...]) -> str:
    kind = mods[1]
    return f"where({o.read(ops[3], 'pred')}, {o.read(ops[1], kind)}, {o.read(ops[2], kind)})"


@rule("setp", "set")
def _compare(o: Operands, mods: list[str], ops: tuple[str, ...]) -> str:
    name, how, *flags, kind = mods
    if name == "set":  # 1.0 for true, as only the kernels' own assembly has it
        refuse(flags, "f32")
        return f"({o.read(ops[1], kind)} {COMPARE[how]} {o.read(ops[2], kind)}).astype(f32)"
    refuse(flags, "ftz", "and", "or", "xor")
    a, b = o.read(ops[1], kind), o.read(ops[2], kind)
    if "ftz" in flags:
        a, b = f"flush({a})", f"flush({b})"
    if kind != "f32":
        text = f"({a} {COMPARE.get(how) or UNSIGNED_COMPARE[how]} {b})"
    elif how in ("num", "nan"):
        text = f"(isnan({a}) | isnan({b}))" if how == "nan" else f"~(isnan({a}) | isnan({b}))"
    elif how == "ne":  # ordered: false where one is NaN
        text = f"(({a} < {b}) | ({a} > {b}))"
    elif how in COMPARE:
        text = f"({a} {COMPARE[how]} {b})"
    elif how == "equ":
        text = f"~(({a} < {b}) | ({a} > {b}))"
    elif how == "neu":
        text = f"({a} != {b})"
    else:  # true where one is NaN: the opposite comparison is false
        opposite = {"ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}[how]
        text = f"~({a} {opposite} {b})"
    joined = [f for f in flags if f != "ftz"]
    if joined:
        sign = {"and": "&", "or": "|", "xor": "^"}[joined[0]]
        negated = ops[3].startswith("!")
        text = f"({text} {sign} {'~' if negated else ''}{o.read(ops[3].lstrip('!'), 'pred')})"
    return text


@rule("cvt")
def _convert(o: Operands, mods: list[str], ops: tuple[str, ...]) -> str:
    _, *flags, to, source = mods
    rounding = [f for f in flags if f not in ("sat", "ftz")]
    if to in ("bf16x2", "f16x2"):
        refuse(flags, "rn")
        high, low = (f"to_{to[:-2]}({o.read(x, 'f32')}).astype(u32)" for x in ops[1:])
        return f"(({high} << {o.constant('u32', 16)}) | {low})"
    a = o.read(ops[1], source)
    if (source, to) in (("bf16", "f32"), ("f16", "f32")):
        refuse(flags)
        return f"widen({a})" if source == "bf16" else f"{a}.view(f16).astype(f32)"
    if source == "f32" and to in ("bf16", "f16"):
        refuse(flags, "rn")
        return f"to_{to}({a})"
    if source == "f32" and to == "tf32":
        refuse(flags, "rna")
        return f"to_tf32({a})"
    if source == "f32" and to[0] in "us":
        refuse(flags, "rzi", "rni", "rmi", "rpi")
        return f"to_integer({a}, {dtype_of(to)}, {rounding[0]!r})"
    if to == "f32" and source[0] in "us":
        refuse(flags, "rn")
        return f"{a}.astype(f32)"
    if to[0] in "us" and source[0] in "us":
        refuse(flags)
        return f"{a}.astype({dtype_of(to)})"
    if source == to == "f32" and rounding:
        refuse(flags, "rni", "rzi", "rmi", "rpi")
        return f"{ {'rni': 'rint', 'rzi': 'trunc', 'rmi': 'floor', 'rpi': 'ceil'}[rounding[0]] }({a})"
    raise UnknownInstruction(f"conversion {source} -> {to}")


def value(o: Operands, instruction: Instruction) -> str:
    """The expression of an instruction with one destination, or UnknownInstruction."""
    name, *_ = mods = instruction.opcode.split(".")
    found = RULES.get(name)
    if found is None:
        raise UnknownInstruction(str(instruction))
    try:
        return found(o, mods, instruction.operands)
    except (UnknownInstruction, KeyError, ValueError) as error:
        raise UnknownInstruction(f"{instruction}: {error}") from error

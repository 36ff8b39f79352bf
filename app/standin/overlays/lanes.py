"""Vectors of integers as values in numba: one LLVM vector each, so nothing is left to chance.

numba's own loops leave it to the compiler to find a vector in them. ``Lanes`` says it outright:
``popcount(load(a, i) ^ broadcast(b, j))`` is 64 words wide, stays in registers, and becomes
whatever the processor has (eight VPOPCNTQ with AVX-512 VPOPCNTDQ, narrower code elsewhere).

How many lanes an array's elements come in: 64 (uint64 and uint32), 32 (int16). Loads and stores are
not bounds checked and take flat element indices.
"""

import operator

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, models, overload, register_model

COUNTS = {types.uint64: 64, types.uint32: 64, types.int16: 32}


class Lanes(types.Type):
    """The type of ``count`` integers of ``bits`` bits."""

    def __init__(self, bits, count):
        """bits, count: both powers of two."""
        self.bits, self.count = bits, count
        self.mask = types.Integer.from_bitwidth(count, signed=False)
        super().__init__(name=f"Lanes({bits}, {count})")


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """Held as an LLVM vector."""

    def __init__(self, manager, lanes):
        super().__init__(manager, lanes, ir.VectorType(ir.IntType(lanes.bits), lanes.count))


def _lanes_of(array):
    return Lanes(array.dtype.bitwidth, COUNTS[array.dtype])


def _pointer(context, builder, array_type, array, index, element):
    """Where element ``index`` of a contiguous array is, as a pointer to ``element``."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), element.as_pointer())


def _splat(builder, scalar, vector):
    """The scalar in every lane."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
    return builder.shuffle_vector(first, first, zeros)


@intrinsic
def load(typing, array, index):
    """The lanes from element ``index`` of an array on."""
    lanes = _lanes_of(array)

    def generate(context, builder, signature, arguments):
        vector = context.get_value_type(lanes)
        pointer = _pointer(context, builder, array, *arguments, vector)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return lanes(array, types.intp), generate


@intrinsic
def store(typing, array, index, value):
    """Write lanes from element ``index`` of an array on, cut to the width of its elements."""

    def generate(context, builder, signature, arguments):
        element = ir.VectorType(ir.IntType(array.dtype.bitwidth), value.count)
        data, place, vector = arguments
        if value.bits > array.dtype.bitwidth:
            vector = builder.trunc(vector, element)
        pointer = _pointer(context, builder, array, data, place, element)
        builder.store(vector, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def broadcast(typing, array, index):
    """Element ``index`` of an array in every lane."""
    lanes = _lanes_of(array)

    def generate(context, builder, signature, arguments):
        vector = context.get_value_type(lanes)
        pointer = _pointer(context, builder, array, *arguments, vector.element)
        return _splat(builder, builder.load(pointer), vector)

    return lanes(array, types.intp), generate


@intrinsic
def element(typing, array, index):
    """Element ``index`` of an array."""

    def generate(context, builder, signature, arguments):
        scalar = context.get_value_type(array.dtype)
        return builder.load(_pointer(context, builder, array, *arguments, scalar))

    return array.dtype(array, types.intp), generate


@intrinsic
def splat(typing, array, scalar):
    """A scalar in every lane, as many and as wide as the lanes of an array."""
    lanes = _lanes_of(array)
    element = types.Integer.from_bitwidth(lanes.bits, signed=True)

    def generate(context, builder, signature, arguments):
        return _splat(builder, arguments[1], context.get_value_type(lanes))

    return lanes(array, element), generate


@intrinsic
def popcount(typing, value):
    """How many bits are set, lane by lane."""

    def generate(context, builder, signature, arguments):
        operand = arguments[0].type
        lanes = f"v{value.count}" if isinstance(value, Lanes) else ""
        name = f"llvm.ctpop.{lanes}i{value.bits if lanes else value.bitwidth}"
        function = builder.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(operand, [operand])
            function = ir.Function(builder.module, kind, name)
        return builder.call(function, arguments)

    return value(value), generate


@intrinsic
def greater(typing, left, right):
    """Where left > right (signed): bit i of the unsigned integer returned is lane i."""

    def generate(context, builder, signature, arguments):
        flags = builder.icmp_signed(">", *arguments)
        return builder.bitcast(flags, ir.IntType(left.count))

    return left.mask(left, right), generate


@intrinsic
def invert(typing, value):
    """Every bit flipped."""

    def generate(context, builder, signature, arguments):
        return builder.not_(arguments[0])

    return value(value), generate


@overload(operator.invert)
def _invert(value):
    if isinstance(value, Lanes):
        return lambda value: invert(value)
    return None


def _operator(function, instruction):
    """Let ``function`` work on two Lanes by an instruction of LLVM."""

    @intrinsic
    def apply(typing, left, right):
        def generate(context, builder, signature, arguments):
            return getattr(builder, instruction)(*arguments)

        return left(left, right), generate

    @overload(function)
    def implementation(left, right):
        if isinstance(left, Lanes) and left == right:
            return lambda left, right: apply(left, right)
        return None


for _function, _instruction in (
    (operator.add, "add"),
    (operator.sub, "sub"),
    (operator.mul, "mul"),
    (operator.and_, "and_"),
    (operator.xor, "xor"),
):
    _operator(_function, _instruction)

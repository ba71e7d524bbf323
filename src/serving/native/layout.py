"""What the compiled step is given, as it lies in memory: the structures of its C++ code."""

import ctypes


class Matrix(ctypes.Structure):
    """The weights of a linear layer."""

    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


class Norm(ctypes.Structure):
    """An RMS norm."""

    _fields_ = (("weight", ctypes.c_void_p), ("epsilon", ctypes.c_float))


NORMS = ("before_attention", "before_mlp", "query_norm", "key_norm")
MATRICES = ("query", "key", "value", "output", "gate", "up", "down")


class Layer(ctypes.Structure):
    """A layer of the decoder, and its part of the cache."""

    _fields_ = (
        *((name, Norm) for name in NORMS),
        *((name, Matrix) for name in MATRICES),
        ("cache", ctypes.c_void_p),
        ("table", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("has_rope", ctypes.c_int64),
    )


class Model(ctypes.Structure):
    """The decoder."""

    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("num_layers", "hidden_size", "num_heads", "num_key_value_heads", "head_size"),
                *("rotated_size", "intermediate_size", "vocab_size"),
            )
        ),
        *((name, ctypes.c_float) for name in ("scale", "residual_scale", "logit_scale")),
        ("norm", Norm),
        ("head", Matrix),
    )


class Pages(ctypes.Structure):
    """The adapters beside a projection."""

    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("num_matrices", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
    )


class Adapters(ctypes.Structure):
    """Those of the rows of a step."""

    _fields_ = (
        ("pages", ctypes.POINTER(Pages)),
        ("table", ctypes.c_void_p),
        ("most_pages", ctypes.c_int64),
        ("rank", ctypes.c_int64),
    )


class Rows(ctypes.Structure):
    """What a step reads, and where its scores go."""

    _fields_ = (
        ("num_rows", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("table_stride", ctypes.c_int64),
        ("num_blocks", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
        ("adapters", Adapters),
        ("num_scores", ctypes.c_int64),
        ("scores", ctypes.c_void_p),
    )

"""llama.cpp on the model of a GGUF file, as F16 or Q8_0: WORK, GGUF and type."""

import sys
from concurrent.futures import ThreadPoolExecutor
from os import _exit, environ
from pathlib import Path

import gguf
import xllamacpp

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.serving.trace.timing import print_best
from benchmarks.serving.trace.work import RealWork


def convert(source: Path, target: Path, kind: gguf.GGMLQuantizationType) -> None:
    """Write a model with all its matrices in one type."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            item = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], item)
    for tensor in reader.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        own = gguf.GGMLQuantizationType.F32 if len(tensor.shape) == 1 else kind
        writer.add_tensor(tensor.name, gguf.quants.quantize(data, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


work, source, kind = RealWork.load(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
path = Path(sys.argv[1]).with_name(f"{kind}.gguf")
if not path.exists():
    convert(source, path, gguf.GGMLQuantizationType[kind])
longest = max(len(asked.prompt) + asked.num_tokens for asked in work.requests)
params = xllamacpp.CommonParams()
params.model.path = str(path)
params.n_parallel = len(work.requests)
params.n_ctx = (longest // 256 + 1) * 256 * params.n_parallel
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(environ["OMP_NUM_THREADS"])
server = xllamacpp.Server(params)


def answer(asked):
    server.handle_completions(
        {
            "prompt": asked.prompt,
            "n_predict": asked.num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
    )


def answer_all():
    with ThreadPoolExecutor(len(work.requests)) as pool:
        list(pool.map(answer, work.requests))


print_best(answer_all)
_exit(0)  # its server waits for connections

// A decoding step of a Llama-like decoder on a CPU, for the few rows of a batch.
//
// The threads stay in one parallel region. Sums are made in float32.

#include <omp.h>

#include <vector>

#include "attention.h"
#include "barrier.h"
#include "products.h"
#include "vectors.h"

struct Norm {
    const float* weight;  // (features,) or none
    float epsilon;
};

struct Layer {
    Norm before_attention, before_mlp, query_norm, key_norm;
    Matrix query, key, value, output, gate, up, down;
    void* cache;       // (places, keys' then values' heads, head size)
    int64_t window;    // how many of the last tokens it sees; 0 is all
    int64_t has_rope;
};

struct Model {
    const Layer* layers;
    int64_t num_layers, hidden_size, num_heads, num_key_value_heads, head_size, rotated_size;
    int64_t intermediate_size, vocab_size;
    float scale, residual_scale, logit_scale;
    Norm norm;
    Matrix head;
};

struct Rows {
    int64_t num_rows;
    float* x;                // (rows, hidden size): the embedding
    const int64_t* lengths;  // (rows,) with this token; 0 where a row is idle
    const int64_t* blocks;   // (rows, blocks of a row): their numbers in the cache
    int64_t num_blocks, block_size;
    const float *cosines, *sines;  // (rows, rotated size)
    float* scores;                 // (rows, vocabulary): what comes of it
};

namespace {

void normalize(const Norm& norm, const float* x, float* to, int64_t size) {
    const float scale = 1 / std::sqrt(dot(x, x, size) / size + norm.epsilon);
    for (int64_t i = 0; i < size; i++) to[i] = x[i] * scale * norm.weight[i];
}

void rotate(float* head, const float* cosines, const float* sines, int64_t size) {
    const int64_t half = size / 2;
    for (int64_t i = 0; i < half; i++) {
        const float a = head[i], b = head[i + half];
        head[i] = a * cosines[i] + b * sines[i];  // the minus of the rotation is in the sines
        head[i + half] = b * cosines[i + half] + a * sines[i + half];
    }
}

template <typename W>
class Step {
   public:
    Step(const Model& model, const Rows& rows, int num_threads)
        : model(model), rows(rows), num_rows(rows.num_rows),
          query_size(model.num_heads * model.head_size),
          key_size(model.num_key_value_heads * model.head_size),
          query(num_rows * query_size), key(num_rows * key_size), value(num_rows * key_size),
          mixed(num_rows * query_size), gated(num_rows * model.intermediate_size),
          num_threads(num_threads),
          attention(cache(), model.num_heads / model.num_key_value_heads, rows.lengths, num_rows,
                    num_threads) {}

    void run() {
#pragma omp parallel num_threads(num_threads)
        {
            typename Attention<W>::Scratch scratch;
            std::vector<float> normed(num_rows * model.hidden_size);
            const int64_t part = omp_get_thread_num(), num_parts = omp_get_num_threads();
            for (int64_t number = 0; number < model.num_layers; number++) {
                const Layer& layer = model.layers[number];
                normalize_all(layer.before_attention, normed.data());
                project(layer.query, normed, query, query_size, part, num_parts);
                project(layer.key, normed, key, key_size, part, num_parts);
                project(layer.value, normed, value, key_size, part, num_parts);
                barrier.wait(num_parts);
                const int64_t num_heads = model.num_key_value_heads, items = num_rows * num_heads;
                for (int64_t item = part; item < items; item += num_parts)
                    enter(layer, item / num_heads, item % num_heads);
                barrier.wait(num_parts);  // a row may see another, which is before it in its text
                attention.mix(cache(layer.cache), layer.window, query.data(), mixed.data(), scratch,
                              part, num_parts);
                barrier.wait(num_parts);
                if (attention.is_shared()) {
                    attention.join(mixed.data(), part, num_parts);
                    barrier.wait(num_parts);
                }
                add_product(layer.output, mixed, query_size, part, num_parts);
                barrier.wait(num_parts);
                normalize_all(layer.before_mlp, normed.data());
                gate(layer, normed, share(model.intermediate_size, part, num_parts));
                barrier.wait(num_parts);
                add_product(layer.down, gated, model.intermediate_size, part, num_parts);
                barrier.wait(num_parts);
            }
            normalize_all(model.norm, normed.data());
            multiply<W>(model.head, model.hidden_size, normed.data(), num_rows,
                        share(model.vocab_size, part, num_parts),
                        [&](int64_t row, int64_t output, float x) {
                            rows.scores[row * model.vocab_size + output] = x * model.logit_scale;
                        });
        }
    }

   private:
    const Model& model;
    const Rows& rows;
    const int64_t num_rows, query_size, key_size;
    std::vector<float> query, key, value, mixed, gated;
    const int num_threads;
    Attention<W> attention;
    Barrier barrier;

    void normalize_all(const Norm& norm, float* to) {
        const int64_t size = model.hidden_size;
        for (int64_t row = 0; row < num_rows; row++)
            normalize(norm, rows.x + row * size, to + row * size, size);
    }

    void project(const Matrix& matrix, const std::vector<float>& x, std::vector<float>& to,
                 int64_t size, int64_t part, int64_t num_parts) {
        multiply<W>(matrix, model.hidden_size, x.data(), num_rows, share(size, part, num_parts),
                    [&](int64_t row, int64_t output, float x) { to[row * size + output] = x; });
    }

    void add_product(const Matrix& matrix, const std::vector<float>& x, int64_t size, int64_t part,
                     int64_t num_parts) {
        const int64_t hidden_size = model.hidden_size;
        multiply<W>(matrix, size, x.data(), num_rows, share(hidden_size, part, num_parts),
                    [&](int64_t row, int64_t output, float x) {
                        rows.x[row * hidden_size + output] += x * model.residual_scale;
                    });
    }

    void gate(const Layer& layer, const std::vector<float>& x, Range outputs) {
        const int64_t size = model.intermediate_size, num_outputs = outputs.end - outputs.begin;
        std::vector<float> up(num_rows * num_outputs);
        multiply<W>(layer.gate, model.hidden_size, x.data(), num_rows, outputs,
                    [&](int64_t row, int64_t output, float x) { gated[row * size + output] = x; });
        multiply<W>(layer.up, model.hidden_size, x.data(), num_rows, outputs,
                    [&](int64_t row, int64_t output, float x) {
                        up[row * num_outputs + output - outputs.begin] = x;
                    });
        for (int64_t row = 0; row < num_rows; row++) {
            float* to = gated.data() + row * size + outputs.begin;
            const float* by = up.data() + row * num_outputs;
            map(to, to, num_outputs, [&](Vector x, int64_t) { return x / (1.f + exponential(-x)); });
            for (int64_t i = 0; i < num_outputs; i++) to[i] *= by[i];
        }
    }

    // Key and value of a row go to the cache, and its queries that share the key are prepared.
    void enter(const Layer& layer, int64_t row, int64_t head) {
        const int64_t size = model.head_size, sharing = model.num_heads / model.num_key_value_heads;
        float* queries = query.data() + row * query_size + head * sharing * size;
        for (int64_t i = 0; i < sharing; i++) {
            prepare(layer.query_norm, layer.has_rope, row, queries + i * size);
            for (int64_t j = 0; j < size; j++) queries[i * size + j] *= model.scale;
        }
        const int64_t from = row * key_size + head * size;
        prepare(layer.key_norm, layer.has_rope, row, key.data() + from);
        if (rows.lengths[row] == 0) return;
        W* to = cache(layer.cache).at(row, rows.lengths[row] - 1) + head * size;
        for (int64_t i = 0; i < size; i++) {
            assign(to[i], key[from + i]);
            assign(to[key_size + i], value[from + i]);
        }
    }

    void prepare(const Norm& norm, bool has_rope, int64_t row, float* head) {
        if (norm.weight) normalize(norm, head, head, model.head_size);
        const int64_t size = model.rotated_size;
        if (has_rope) rotate(head, rows.cosines + row * size, rows.sines + row * size, size);
    }

    Cache<W> cache(void* of_layer = nullptr) const {
        return {static_cast<W*>(of_layer), model.num_key_value_heads, model.head_size,
                rows.blocks, rows.num_blocks, rows.block_size};
    }
};

}  // namespace

extern "C" void step_float32(const Model* model, const Rows* rows, int num_threads) {
    Step<float>(*model, *rows, num_threads).run();
}

extern "C" void step_bfloat16(const Model* model, const Rows* rows, int num_threads) {
    Step<bfloat16>(*model, *rows, num_threads).run();
}

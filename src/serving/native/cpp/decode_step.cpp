// A decoding step of a Llama-like decoder on a CPU, for the few rows of a batch.
//
// The threads stay in one parallel region. Sums are made in float32.

#include <omp.h>

#include <initializer_list>

#include "attention.h"
#include "barrier.h"
#include "updates.h"

struct Norm {
    const float* weight;  // (features,) or none
    float epsilon;
};

struct Layer {
    Norm before_attention, before_mlp, query_norm, key_norm;
    Matrix query, key, value, output, gate, up, down;
    void* cache;       // (places, keys' then values' heads, head size)
    int64_t table;     // by which a row finds its places
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
    const int64_t* tables;   // (tables, rows, blocks of a row): their numbers in the cache
    int64_t table_stride, num_blocks, block_size;
    const float *cosines, *sines;  // (rows, rotated size)
    Adapters adapters;
    int64_t num_scores;  // of the first rows
    float* scores;       // (scores, vocabulary): what comes of it
};

namespace {

constexpr int64_t ALL = INT64_MAX;  // rows

// Of a layer; the head's come after the last one's.
enum Projection { QUERY_KEY_VALUE, OUTPUT, GATE_UP, DOWN, PROJECTIONS_OF_LAYER };

// Where the outputs of a matrix go, which is set or added to.
struct Target {
    const Matrix& matrix;
    float* to;  // (rows, size)
    int64_t size;
    float factor = 1;
    bool is_sum = false;
};

template <typename T>
void normalize(const Norm& norm, const float* x, T* to, int64_t size) {
    const float scale = 1 / std::sqrt(dot(x, x, size) / size + norm.epsilon);
    for (int64_t i = 0; i < size; i++) assign(to[i], x[i] * scale * norm.weight[i]);
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
          inner_size(model.intermediate_size),
          query(num_rows * query_size), key(num_rows * key_size), value(num_rows * key_size),
          gate(num_rows * inner_size), up(num_rows * inner_size),
          mixed(num_rows, query_size), gated(num_rows, inner_size),
          num_threads(num_threads),
          attention(cache(model.layers[0]), model.num_heads / model.num_key_value_heads,
                    rows.lengths, num_rows, num_threads),
          updates(rows.adapters, num_rows) {}

    void run() {
#pragma omp parallel num_threads(num_threads)
        {
            const Part part = {omp_get_thread_num(), omp_get_num_threads()};
            Inputs<W> normed(num_rows, model.hidden_size);
            const Tiles tiles;
            Products<W> products;
            typename Attention<W>::Scratch scratch;
            const auto wait = [&] { barrier.wait(part.of); };
            for (int64_t number = 0; number < model.num_layers; number++) {
                const Layer& layer = model.layers[number];
                const int64_t first = number * PROJECTIONS_OF_LAYER;
                normalize_all(layer.before_attention, normed);
                project(first + QUERY_KEY_VALUE, normed, model.hidden_size, products, part,
                        {{layer.query, query.data(), query_size},
                         {layer.key, key.data(), key_size},
                         {layer.value, value.data(), key_size}});
                wait();
                const int64_t num_heads = model.num_key_value_heads, items = num_rows * num_heads;
                for (int64_t item = part.number; item < items; item += part.of)
                    enter(layer, item / num_heads, item % num_heads);
                wait();  // a row may see another, which is before it in its text
                attention.mix(cache(layer), layer.window, query.data(), mixed, scratch,
                              part.number, part.of);
                wait();
                if (attention.is_shared()) {
                    attention.join(mixed, part.number, part.of);
                    wait();
                }
                project(first + OUTPUT, mixed, query_size, products, part, {to_rows(layer.output)});
                wait();
                normalize_all(layer.before_mlp, normed);
                project(first + GATE_UP, normed, model.hidden_size, products, part,
                        {{layer.gate, gate.data(), inner_size}, {layer.up, up.data(), inner_size}});
                activate(share(inner_size, part));
                wait();
                project(first + DOWN, gated, inner_size, products, part, {to_rows(layer.down)});
                wait();
            }
            normalize_all(model.norm, normed);
            project(model.num_layers * PROJECTIONS_OF_LAYER, normed, model.hidden_size, products,
                    part, {{model.head, rows.scores, model.vocab_size, model.logit_scale}},
                    rows.num_scores);
        }
    }

   private:
    const Model& model;
    const Rows& rows;
    const int64_t num_rows, query_size, key_size, inner_size;
    std::vector<float> query, key, value, gate, up;
    Inputs<W> mixed, gated;
    const int num_threads;
    Attention<W> attention;
    Updates<W> updates;
    Barrier barrier;

    void normalize_all(const Norm& norm, Inputs<W>& to) {
        for (int64_t row = 0; row < num_rows; row++)
            normalize(norm, rows.x + row * model.hidden_size, to.row(row), model.hidden_size);
    }

    Target to_rows(const Matrix& matrix) const {
        return {matrix, rows.x, model.hidden_size, model.residual_scale, true};
    }

    // Multiply x with a thread's part of matrices, and add what adapters do, for the first rows or all.
    void project(int64_t projection, const Inputs<W>& x, int64_t num_inputs, Products<W>& products,
                 Part part, std::initializer_list<Target> targets, int64_t count = ALL) {
        const int64_t num_rows = std::min(count, this->num_rows);
        const bool is_adapted = updates.read(projection, x, num_rows, part);
        products.read(x, num_inputs, num_rows);
        for (const Target& target : targets)
            products.multiply(target.matrix, share(target.size, part),
                              [&](int64_t row, int64_t output, float value) {
                                  float& to = target.to[row * target.size + output];
                                  to = (target.is_sum ? to : 0) + target.factor * value;
                              });
        if (!is_adapted) return;
        barrier.wait(part.of);
        int64_t number = 0, column = 0;
        for (const Target& target : targets) {
            updates.add(projection, number++, column, target.factor, target.to, num_rows,
                        target.size, share(target.size, part));
            column += target.size;
        }
    }

    void activate(Range outputs) {
        const int64_t num_outputs = outputs.end - outputs.begin;
        for (int64_t row = 0; row < num_rows; row++) {
            float* own = gate.data() + row * inner_size + outputs.begin;
            const float* by = up.data() + row * inner_size + outputs.begin;
            auto* to = gated.row(row) + outputs.begin;
            map(own, own, num_outputs, [](Vector x) { return x / (1.f + exponential(-x)); });
            for (int64_t i = 0; i < num_outputs; i++) assign(to[i], own[i] * by[i]);
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
        W* to = cache(layer).at(row, rows.lengths[row] - 1) + head * size;
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

    Cache<W> cache(const Layer& layer) const {
        return {static_cast<W*>(layer.cache), model.num_key_value_heads, model.head_size,
                rows.tables + layer.table * rows.table_stride, rows.num_blocks, rows.block_size};
    }
};

}  // namespace

extern "C" int has_tiles() { return may_use_tiles(); }

extern "C" void step_float32(const Model* model, const Rows* rows, int num_threads) {
    Step<float>(*model, *rows, num_threads).run();
}

extern "C" void step_bfloat16(const Model* model, const Rows* rows, int num_threads) {
    Step<bfloat16>(*model, *rows, num_threads).run();
}

#ifndef PKV_KERNELS_ATTENTION_DENSE_ROWS_H_
#define PKV_KERNELS_ATTENTION_DENSE_ROWS_H_

// Loops of attention over fp32 vectors, with equal bits for every vector width. `head_dim` is a
// multiple of 16.

namespace pkv {

// Sixteen interleaved partial sums, folded in halves.
float Dot(const float* a, const float* b, int count);

// scores[t] = q . rows[t].
void DotRows(const float* rows, int num_rows, int head_dim, const float* q, float* scores);

// out += sum over t of weights[t] * rows[t], in order of t.
void AddWeightedRows(const float* rows, const float* weights, int num_rows, int head_dim,
                     float* out);

// out[i] = a[i] * b[i].
void Multiply(const float* a, const float* b, int count, float* out);

// values[i] *= factor.
void ScaleBy(float factor, int count, float* values);

// The largest of `count` values, a positive multiple of 16, none of them NaN.
float Largest(const float* values, int count);

// Replaces scores by e^(score - max) and returns their sum; a score of -infinity gives 0. REQUIRES:
// count is a multiple of 16, no score exceeds max, max is finite.
float ExpSum(float max, int count, float* scores);

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DENSE_ROWS_H_

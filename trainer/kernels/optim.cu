// What happens to all parameters between two passes, each in one launch: gradient norms and clipping, AdamW, the running
// mean of the weights.
#include "common.cuh"

static const int THREADS = 256;
// Elements of one block.
static const int64_t CHUNK = 1 << 13;

// One parameter.
struct Parameter {
  float *weight, *exp_avg, *exp_avg_sq;
  const float *gradient;
  int64_t n;
  // What weight decay leaves of the weight in this step: 1 - lr * decay.
  float keep;
  float unused;
};

// A block's part: which parameter, and the first element.
struct Part {
  int64_t parameter, first;
};

// Numbers of one step, as `trainer::optim::adamw` has them.
struct Step {
  float grad_scale, one_minus_beta1, beta2, one_minus_beta2, step_size, bias_correction2_sqrt, eps;
};

__global__ void squares_kernel(const Parameter *parameters, const Part *parts, double *squares) {
  SHARED(double, sums);
  const Part part = parts[blockIdx.x];
  const Parameter of = parameters[part.parameter];
  const int64_t last = part.first + CHUNK < of.n ? part.first + CHUNK : of.n;
  double sum = 0.0;
  if (of.gradient)
    for (int64_t i = part.first + threadIdx.x; i < last; i += THREADS)
      sum += (double)of.gradient[i] * (double)of.gradient[i];
  sums[threadIdx.x] = sum;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) squares[blockIdx.x] = sums[0];
}

// Sums of each parameter's parts, `first_parts[p]` to `first_parts[p + 1]`, in order, by one warp a parameter.
__global__ void sums_of_squares_kernel(const double *squares, const int64_t *first_parts, double *sums) {
  const int lane = threadIdx.x;
  const int64_t first = first_parts[blockIdx.x], last = first_parts[blockIdx.x + 1];
  double sum = 0.0;
  for (int64_t i = first + lane; i < last; i += WARP) sum += squares[i];
  sum = warp_sum(sum);
  if (lane == 0) sums[blockIdx.x] = sum;
}

// The global norm, and what clipping multiplies gradients with: 1 without clipping (`max_norm` 0), NaN if the norm is
// not finite.
__global__ void global_norm_kernel(const double *sums, int64_t n, float max_norm, float *norm_and_factor) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < n; i += WARP) sum += sums[i];
  sum = warp_sum(sum);
  if (threadIdx.x != 0) return;
  const double norm = sqrt(sum);
  norm_and_factor[0] = (float)norm;
  const double factor = (double)max_norm / (norm + 1e-6);
  norm_and_factor[1] = max_norm > 0.f && factor < 1.0 ? (float)factor : 1.f;
  if (!(norm < (double)INFINITY)) norm_and_factor[1] = NAN;
}

// Nothing is changed if the factor is NaN: a gradient that is not finite must not reach the weights, and the host looks
// at the norm later.
__global__ void adamw_kernel(const Parameter *parameters, const Part *parts, Step step, const float *norm_and_factor) {
  const float factor = norm_and_factor ? norm_and_factor[1] : 1.f;
  if (factor != factor) return;
  const Part part = parts[blockIdx.x];
  const Parameter of = parameters[part.parameter];
  if (!of.gradient) return;
  const int64_t last = part.first + CHUNK < of.n ? part.first + CHUNK : of.n;
  for (int64_t i = part.first + threadIdx.x; i < last; i += THREADS) {
    const float g = of.gradient[i] * (factor * step.grad_scale);
    const float m = of.exp_avg[i] + step.one_minus_beta1 * (g - of.exp_avg[i]);
    const float v = of.exp_avg_sq[i] * step.beta2 + step.one_minus_beta2 * g * g;
    of.exp_avg[i] = m;
    of.exp_avg_sq[i] = v;
    const float denominator = sqrtf(v) / step.bias_correction2_sqrt + step.eps;
    of.weight[i] = of.weight[i] * of.keep - step.step_size * (m / denominator);
  }
}

// exp_avg = decay * exp_avg + (1 - decay) * weight: the mean stands where AdamW has its first moment.
__global__ void running_mean_kernel(const Parameter *parameters, const Part *parts, float decay, float rest) {
  const Part part = parts[blockIdx.x];
  const Parameter of = parameters[part.parameter];
  const int64_t last = part.first + CHUNK < of.n ? part.first + CHUNK : of.n;
  for (int64_t i = part.first + threadIdx.x; i < last; i += THREADS)
    of.exp_avg[i] = decay * of.exp_avg[i] + rest * of.weight[i];
}

extern "C" int64_t pairquet_part_elements() { return CHUNK; }

// * `squares`: `[n_parts]`, scratch. `sums`: `[n_parameters]`, each gradient's sum of squares.
extern "C" int pairquet_gradient_norms(const Parameter *parameters, const Part *parts, const int64_t *first_parts,
                                       int64_t n_parameters, int64_t n_parts, float max_norm, double *squares,
                                       double *sums, float *norm_and_factor, void *stream) {
  if (n_parts == 0) return INVALID_VALUE;
  LAUNCH(squares_kernel, (unsigned)n_parts, THREADS, THREADS * sizeof(double), stream, parameters, parts, squares);
  LAUNCH(sums_of_squares_kernel, (unsigned)n_parameters, WARP, 0, stream, squares, first_parts, sums);
  LAUNCH(global_norm_kernel, 1, WARP, 0, stream, sums, n_parameters, max_norm, norm_and_factor);
  return launch_result();
}

extern "C" int pairquet_adamw(const Parameter *parameters, const Part *parts, int64_t n_parts, const Step *step,
                              const float *norm_and_factor, void *stream) {
  if (n_parts == 0) return 0;
  const Step numbers = *step;
  LAUNCH(adamw_kernel, (unsigned)n_parts, THREADS, 0, stream, parameters, parts, numbers, norm_and_factor);
  return launch_result();
}

extern "C" int pairquet_running_mean(const Parameter *parameters, const Part *parts, int64_t n_parts, float decay,
                                     float rest, void *stream) {
  if (n_parts == 0) return 0;
  LAUNCH(running_mean_kernel, (unsigned)n_parts, THREADS, 0, stream, parameters, parts, decay, rest);
  return launch_result();
}

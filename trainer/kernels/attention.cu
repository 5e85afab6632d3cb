// The entry points of attention.
#include "attention.cuh"

static const int MOST_ELEMENTS = 128;

static bool is_possible(const Attention *a) {
  return a->d > 0 && a->d <= MOST_ELEMENTS && a->n > 0 && a->m > 0 && a->heads > 0 && a->batch > 0 &&
         a->heads <= 65535 && a->batch <= 65535;
}

extern "C" int pairquet_attention_forward(int type, const Attention *a, void *stream) {
  if (!is_possible(a)) return INVALID_VALUE;
  return type == TYPE_F32    ? attention_forward_f32(*a, stream)
         : type == TYPE_BF16 ? attention_forward_bf16(*a, stream)
                             : INVALID_VALUE;
}

extern "C" int pairquet_attention_backward(int type, const Attention *a, void *stream) {
  if (!is_possible(a)) return INVALID_VALUE;
  return type == TYPE_F32    ? attention_backward_f32(*a, stream)
         : type == TYPE_BF16 ? attention_backward_bf16(*a, stream)
                             : INVALID_VALUE;
}

// The ops of csrc under `torch.ops.synpro_csrc`. Autograd, fake tensors and validation are the Python layer's.
#include "decode_attention.h"
#include "draw_tokens.h"
#include "grad_dot.h"
#include "linear_distill.h"
#include "linear_logprob.h"
#include "row_ops.h"
#include "skinny_linear.h"
#include "sources.h"  // written by setup.py

#include <torch/library.h>

#include <string>

static std::string sources() { return SYNPRO_SOURCES; }

TORCH_LIBRARY(synpro_csrc, library) {
  library.def(
      "merge_logits_(Tensor block, Tensor(a!) maximum, Tensor(b!) sumexp, Tensor(c!) weighted, Tensor(d!) target_logit,"
      " Tensor column, int start, float scale) -> ()");
  library.def(
      "differentiate_logits_(Tensor(a!) block, Tensor coefficients, Tensor column, int start, float scale, bool capped)"
      " -> ()");
  library.def(
      "distill_norms_(Tensor block, Tensor(a!) maximum, Tensor(b!) tempered, Tensor(c!) sumexp, Tensor(d!) target_logit,"
      " Tensor column, int start, float inverse_temperature, bool both) -> ()");
  library.def(
      "distill_mix_(Tensor block, Tensor teacher, Tensor(a!) into, float inverse_temperature, bool first) -> ()");
  library.def(
      "distill_differentiate_(Tensor(a!) block, Tensor taught, Tensor? others, Tensor student, Tensor teacher,"
      " Tensor column, int start, float inverse_temperature, float pull, float label, Tensor(b!) divergence) -> ()");
  library.def(
      "grad_dot_tokens(Tensor x, Tensor grad_out, Tensor direction, Tensor? scale, bool over_inputs) -> Tensor");
  library.def(
      "grad_dot_prefix(Tensor x, Tensor grad_out, Tensor direction, int[] boundaries, Tensor(a!) accumulator)"
      " -> Tensor");
  library.def("formed_dot(Tensor gradient, Tensor direction) -> Tensor");
  library.def(
      "decode_attention(Tensor query, Tensor key, Tensor value, Tensor row_of_place, Tensor place_of_row,"
      " Tensor prompt_length, Tensor prompt_page, Tensor new_length, Tensor new_page, Tensor sequence_of_row,"
      " int most_lanes=16) -> Tensor");
  library.def("skinny_linear(Tensor x, Tensor weight, Tensor? bias, bool wide=False, int most_lanes=16) -> Tensor");
  library.def("rms_norm(Tensor x, Tensor weight, float eps, int most_lanes=16) -> Tensor");
  library.def("swiglu(Tensor gate_up, int most_lanes=16) -> Tensor");
  library.def(
      "rms_norm_backward(Tensor grad, Tensor x, Tensor weight, float eps, int most_lanes=16) -> (Tensor, Tensor)");
  library.def("rotary(Tensor x, Tensor cos, Tensor sin, bool back=False, int most_lanes=16) -> Tensor");
  library.def("swiglu_backward(Tensor grad, Tensor gate_up, int most_lanes=16) -> Tensor");
  library.def(
      "store_heads(Tensor mixed, Tensor cos, Tensor sin, Tensor(a!) key, Tensor(b!) value, Tensor page, Tensor time,"
      " Tensor? query_weight, Tensor? key_weight, Tensor? means, float eps, bool by_head, int most_lanes=16) -> Tensor");
  library.def("draw_tokens(Tensor logits, Tensor uniform, float temperature) -> (Tensor, Tensor)");
  library.def("sources() -> str", &sources);
}

TORCH_LIBRARY_IMPL(synpro_csrc, CPU, library) {
  library.impl("merge_logits_", TORCH_FN(synpro::merge_logits_));
  library.impl("differentiate_logits_", TORCH_FN(synpro::differentiate_logits_));
  library.impl("distill_norms_", TORCH_FN(synpro::distill_norms_));
  library.impl("distill_mix_", TORCH_FN(synpro::distill_mix_));
  library.impl("distill_differentiate_", TORCH_FN(synpro::distill_differentiate_));
  library.impl("grad_dot_tokens", TORCH_FN(synpro::grad_dot_tokens));
  library.impl("grad_dot_prefix", TORCH_FN(synpro::grad_dot_prefix));
  library.impl("formed_dot", TORCH_FN(synpro::formed_dot));
  library.impl("decode_attention", TORCH_FN(synpro::decode_attention));
  library.impl("skinny_linear", TORCH_FN(synpro::skinny_linear));
  library.impl("rms_norm", TORCH_FN(synpro::rms_norm));
  library.impl("swiglu", TORCH_FN(synpro::swiglu));
  library.impl("rms_norm_backward", TORCH_FN(synpro::rms_norm_backward));
  library.impl("rotary", TORCH_FN(synpro::rotary));
  library.impl("swiglu_backward", TORCH_FN(synpro::swiglu_backward));
  library.impl("store_heads", TORCH_FN(synpro::store_heads));
  library.impl("draw_tokens", TORCH_FN(synpro::draw_tokens));
}

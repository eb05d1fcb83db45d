// The ops of csrc under `torch.ops.synpro_csrc`. Autograd, fake tensors and validation are the Python layer's.
#include "grad_dot.h"
#include "linear_logprob.h"

#include <torch/library.h>

TORCH_LIBRARY(synpro_csrc, library) {
  library.def(
      "linear_logprob_stats(Tensor hidden, Tensor weight, Tensor target, Tensor? bias, float temperature, float softcap)"
      " -> (Tensor maximum, Tensor sumexp, Tensor weighted, Tensor target_logit)");
  library.def(
      "linear_logprob_grad(Tensor hidden, Tensor weight, Tensor target, Tensor? bias, Tensor maximum, Tensor sumexp,"
      " Tensor entropy, Tensor grad_logprob, Tensor grad_logsumexp, Tensor grad_entropy, float temperature,"
      " float softcap, bool need_hidden, bool need_weight)"
      " -> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)");
  library.def(
      "grad_dot_tokens(Tensor x, Tensor grad_out, Tensor direction, Tensor? scale, bool over_inputs) -> Tensor");
  library.def(
      "grad_dot_prefix(Tensor x, Tensor grad_out, Tensor direction, int[] boundaries, Tensor(a!) accumulator)"
      " -> Tensor");
}

TORCH_LIBRARY_IMPL(synpro_csrc, CPU, library) {
  library.impl("linear_logprob_stats", TORCH_FN(synpro::linear_logprob_stats));
  library.impl("linear_logprob_grad", TORCH_FN(synpro::linear_logprob_grad));
  library.impl("grad_dot_tokens", TORCH_FN(synpro::grad_dot_tokens));
  library.impl("grad_dot_prefix", TORCH_FN(synpro::grad_dot_prefix));
}

// The ops of csrc under `torch.ops.synpro_csrc`. Autograd, fake tensors and validation are the Python layer's.
#include "linear_logprob.h"

#include <torch/library.h>

TORCH_LIBRARY(synpro_csrc, library) {
  library.def(
      "merge_logits_(Tensor block, Tensor(a!) maximum, Tensor(b!) sumexp, Tensor(c!) weighted, Tensor(d!) target_logit,"
      " Tensor column, int start, float scale) -> ()");
  library.def(
      "differentiate_logits_(Tensor(a!) block, Tensor coefficients, Tensor column, int start, float scale, bool capped)"
      " -> ()");
}

TORCH_LIBRARY_IMPL(synpro_csrc, CPU, library) {
  library.impl("merge_logits_", TORCH_FN(synpro::merge_logits_));
  library.impl("differentiate_logits_", TORCH_FN(synpro::differentiate_logits_));
}

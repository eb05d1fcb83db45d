// Attention of a decoding step over pages of keys and values (CPU, fp32 and bf16; sums in fp32).
#pragma once

#include <ATen/core/Tensor.h>

namespace synpro {

// As synpro_kernels.decode_attention, with the parts of DecodeRows one by one; sequence_of_row: each row's in new_page.
// most_lanes: as in skinny_linear.
at::Tensor decode_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const at::Tensor& row_of_place, const at::Tensor& place_of_row, const at::Tensor& prompt_length,
                            const at::Tensor& prompt_page, const at::Tensor& new_length, const at::Tensor& new_page,
                            const at::Tensor& sequence_of_row, int64_t most_lanes);

}  // namespace synpro

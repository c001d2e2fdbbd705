// torch's foreach operations, which its own optimisers are made of.

#include <vector>

#include <ATen/ATen.h>

#include "torch.h"

namespace {
std::vector<at::Tensor> list(at::Tensor** tensors, size_t count) {
  std::vector<at::Tensor> all;
  all.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    all.push_back(*tensors[i]);
  }
  return all;
}
} // namespace

extern "C" char* simclr_lists_add(at::Tensor** x, at::Tensor** y, size_t count, double factor) {
  return simclr::guard([&] { at::_foreach_add_(list(x, count), list(y, count), factor); });
}

extern "C" char* simclr_lists_scale(at::Tensor** x, size_t count, double factor) {
  return simclr::guard([&] { at::_foreach_mul_(list(x, count), factor); });
}

extern "C" char* simclr_lists_scale_each(at::Tensor** x, size_t count, at::Tensor* factors) {
  return simclr::guard([&] { at::_foreach_mul_(list(x, count), factors->unbind(0)); });
}

extern "C" char* simclr_lists_sum(at::Tensor** x, at::Tensor** y, size_t count, double factor, at::Tensor** sums) {
  return simclr::guard([&] {
    auto made = at::_foreach_add(list(x, count), list(y, count), factor);
    for (size_t i = 0; i < count; ++i) {
      sums[i] = new at::Tensor(std::move(made[i]));
    }
  });
}

extern "C" char* simclr_lists_add_squares(at::Tensor** x, at::Tensor** y, size_t count, double factor) {
  return simclr::guard([&] {
    const auto squared = list(y, count);
    at::_foreach_addcmul_(list(x, count), squared, squared, factor);
  });
}

extern "C" char* simclr_lists_add_ratio(
    at::Tensor** x, at::Tensor** y, at::Tensor** z, size_t count, double factor, double root, double epsilon) {
  return simclr::guard([&] {
    auto below = at::_foreach_sqrt(list(z, count));
    at::_foreach_div_(below, root);
    at::_foreach_add_(below, epsilon);
    at::_foreach_addcdiv_(list(x, count), list(y, count), below, factor);
  });
}

extern "C" char* simclr_lists_norms(at::Tensor** x, size_t count, at::Tensor** norms) {
  return simclr::guard([&] { *norms = new at::Tensor(at::stack(at::_foreach_norm(list(x, count), 2))); });
}

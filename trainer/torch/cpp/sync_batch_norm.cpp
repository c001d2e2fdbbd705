// Batch norm whose mean and variance are those of all ranks' images (SimCLR's global batch norm).
//
// All arithmetic over pixels is done by torch's own batch norm kernels, so that f32 and bf16 and channels-last tensors all
// go their usual ways: on CUDA by the kernels made for this, on the CPU, which has none, by those of ordinary batch norm,
// told which statistics to take. Only [2, C] values travel, once each way.

#include <torch/csrc/autograd/custom_function.h>

#include <ATen/ATen.h>

#include "group.h"

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// What a forward pass leaves for its backward pass, beside x and the weights.
struct Statistics {
  Tensor mean;
  // On CUDA 1 / √(var + epsilon), on the CPU the variance.
  Tensor spread;
  // The images times pixels of all ranks: on CUDA those of each, on the CPU the sum.
  Tensor count;
};

// Batch norm by torch's kernels for synchronized batch norm, as torch.nn.SyncBatchNorm calls them.
namespace on_cuda {

Tensor forward(
    const Tensor& given, const Tensor& scale, const std::optional<Tensor>& shift,
    const std::optional<Tensor>& running_mean, const std::optional<Tensor>& running_var, const SimclrGroup& group,
    double momentum, double epsilon, Tensor& x, Statistics& statistics) {
  // The kernels read memory in one of these two orders.
  x = given.is_contiguous(given.suggest_memory_format()) ? given : given.contiguous();
  const int64_t channels = x.size(1);
  const auto [own_mean, own_inverse] = at::batch_norm_stats(x, epsilon);
  const Tensor own_count = at::full({1}, x.numel() / channels, own_mean.options());
  Tensor own = at::cat({own_mean, own_inverse, own_count});
  Tensor all = at::empty({group.group->getSize(), 2 * channels + 1}, own.options());
  group.gather(own, all);
  const Tensor counts = all.select(1, 2 * channels).contiguous();
  std::tie(statistics.mean, statistics.spread) = at::batch_norm_gather_stats_with_counts(
      x, all.narrow(1, 0, channels).contiguous(), all.narrow(1, channels, channels).contiguous(), running_mean,
      running_var, momentum, epsilon, counts);
  statistics.count = counts.to(at::kInt);
  return at::batch_norm_elemt(x, scale, shift, statistics.mean, statistics.spread, epsilon);
}

// The gradients for x, scale and shift.
std::array<Tensor, 3> backward(
    const Tensor& given, const Tensor& x, const Tensor& scale, const Statistics& statistics, const SimclrGroup& group) {
  const Tensor gradient = given.contiguous(x.suggest_memory_format());
  auto [sum, sum_centered, of_scale, of_shift] = at::batch_norm_backward_reduce(
      gradient, x, statistics.mean, statistics.spread, scale, /*input_g=*/true, /*weight_g=*/true, /*bias_g=*/true);
  Tensor sums = at::stack({sum, sum_centered});
  group.sum(sums);
  Tensor of_x = at::batch_norm_backward_elemt(
      gradient, x, statistics.mean, statistics.spread, scale, sums[0], sums[1], statistics.count);
  return {of_x, of_scale, of_shift};
}

} // namespace on_cuda

namespace on_cpu {

// scale × (x - mean) / √(var + epsilon) + shift.
Tensor normalized(
    const Tensor& x, const Tensor& scale, const std::optional<Tensor>& shift, const Tensor& mean, const Tensor& var,
    double epsilon) {
  return std::get<0>(at::native_batch_norm(x, scale, shift, mean, var, /*training=*/false, 0.0, epsilon));
}

Tensor forward(
    const Tensor& x, const Tensor& scale, const std::optional<Tensor>& shift,
    const std::optional<Tensor>& running_mean, const std::optional<Tensor>& running_var, const SimclrGroup& group,
    double momentum, double epsilon, Statistics& statistics) {
  const int64_t channels = x.size(1);
  const int64_t world = group.group->getSize();
  const double count = static_cast<double>(world * (x.numel() / channels));
  // With running statistics in the weights' kind the kernel gives its results in that kind too.
  const auto options = scale.options();
  const auto [own_mean, own_var] =
      at::batch_norm_update_stats(x, at::zeros({channels}, options), at::zeros({channels}, options), 0.0);
  Tensor own = at::stack({own_mean, own_var});
  Tensor all = at::empty({world, 2, channels}, own.options());
  group.gather(own, all);
  const Tensor means = all.select(1, 0);
  const Tensor mean = means.mean(0);
  const Tensor var = (all.select(1, 1) + (means - mean).square()).mean(0);
  if (running_mean.has_value()) {
    running_mean->lerp_(mean, momentum);
    running_var->lerp_(var * (count / std::max(count - 1.0, 1.0)), momentum);
  }
  statistics = {mean, var, at::scalar_tensor(count, at::kDouble)};
  return normalized(x, scale, shift, mean, var, epsilon);
}

// The gradients for x, scale and shift.
std::array<Tensor, 3> backward(
    const Tensor& gradient, const Tensor& x, const Tensor& scale, const Statistics& statistics,
    const SimclrGroup& group, double epsilon) {
  const auto& [mean, var, count] = statistics;
  // As if the statistics were constants: scale / σ × dy, and the sums over this rank's images of dy × x̂ and of dy.
  auto [of_x, of_scale, of_shift] = at::native_batch_norm_backward(
      gradient, x, scale, mean, var, {}, {}, /*train=*/false, epsilon, {true, true, true});
  // What the statistics owe to x: scale / σ × (mean of dy + x̂ × mean of dy × x̂), over all ranks' images.
  Tensor sums = at::stack({of_scale, of_shift});
  group.sum(sums);
  const Tensor means = sums * (-1.0 / count.item<double>());
  const Tensor factor = scale * (var + epsilon).rsqrt();
  of_x.add_(normalized(x, factor * means[0], std::optional<Tensor>(factor * means[1]), mean, var, epsilon));
  return {of_x, of_scale, of_shift};
}

} // namespace on_cpu

struct SyncBatchNorm : torch::autograd::Function<SyncBatchNorm> {
  static Variable forward(
      AutogradContext* context,
      const Variable& x,
      const Variable& scale,
      const std::optional<Variable>& shift,
      const std::optional<Variable>& running_mean,
      const std::optional<Variable>& running_var,
      const SimclrGroup* group,
      double momentum,
      double epsilon) {
    Statistics statistics;
    Tensor read = x;
    Tensor y = x.is_cuda()
        ? on_cuda::forward(x, scale, shift, running_mean, running_var, *group, momentum, epsilon, read, statistics)
        : on_cpu::forward(x, scale, shift, running_mean, running_var, *group, momentum, epsilon, statistics);
    context->save_for_backward({read, scale, statistics.mean, statistics.spread, statistics.count});
    context->saved_data["group"] = reinterpret_cast<int64_t>(group);
    context->saved_data["epsilon"] = epsilon;
    context->saved_data["shifts"] = shift.has_value();
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &scale = saved[1];
    const Statistics statistics{saved[2], saved[3], saved[4]};
    const auto* group = reinterpret_cast<const SimclrGroup*>(context->saved_data["group"].toInt());
    const auto [of_x, of_scale, of_shift] = x.is_cuda()
        ? on_cuda::backward(gradients[0], x, scale, statistics, *group)
        : on_cpu::backward(
              gradients[0], x, scale, statistics, *group, context->saved_data["epsilon"].toDouble());
    const Tensor none;
    return {of_x, of_scale, context->saved_data["shifts"].toBool() ? of_shift : none, none, none, none, none, none};
  }
};

std::optional<Tensor> given(const Tensor* tensor) {
  return tensor == nullptr ? std::nullopt : std::optional<Tensor>(*tensor);
}

} // namespace

extern "C" char* simclr_sync_batch_norm(
    SimclrGroup* group, Tensor* x, Tensor* scale, Tensor* shift, Tensor* running_mean, Tensor* running_var,
    double momentum, double epsilon, Tensor** out) {
  return simclr::guard([&] {
    *out = new Tensor(SyncBatchNorm::apply(
        *x, *scale, given(shift), given(running_mean), given(running_var), group, momentum, epsilon));
  });
}

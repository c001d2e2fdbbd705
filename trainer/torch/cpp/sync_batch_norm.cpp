// Batch norm whose mean and variance are those of all ranks' images (SimCLR's global batch norm).
//
// All arithmetic over pixels is done by torch's own batch norm kernels, told which statistics to take, so that the
// CPU and CUDA, f32 and bf16, and channels-last tensors all go their usual ways. Only [2, C] values travel, once each way.

#include <torch/csrc/autograd/custom_function.h>

#include <ATen/ATen.h>

#include "group.h"

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// scale × (x - mean) / √(var + epsilon) + shift.
Tensor normalized(
    const Tensor& x, const Tensor& scale, const std::optional<Tensor>& shift, const Tensor& mean, const Tensor& var,
    double epsilon) {
  return std::get<0>(at::native_batch_norm(x, scale, shift, mean, var, /*training=*/false, 0.0, epsilon));
}

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
    const int64_t channels = x.size(1);
    const int64_t world = group->group->getSize();
    const double count = static_cast<double>(world * (x.numel() / channels));
    // With running statistics in the weights' kind the kernel gives its results in that kind too.
    const auto options = scale.options();
    const auto [own_mean, own_var] =
        at::batch_norm_update_stats(x, at::zeros({channels}, options), at::zeros({channels}, options), 0.0);
    Tensor own = at::stack({own_mean, own_var});
    Tensor all = at::empty({world, 2, channels}, own.options());
    group->gather(own, all);
    const Tensor means = all.select(1, 0);
    const Tensor mean = means.mean(0);
    const Tensor var = (all.select(1, 1) + (means - mean).square()).mean(0);
    if (running_mean.has_value()) {
      running_mean->lerp_(mean, momentum);
      running_var->lerp_(var * (count / std::max(count - 1.0, 1.0)), momentum);
    }
    context->save_for_backward({x, scale, mean, var});
    context->saved_data["group"] = reinterpret_cast<int64_t>(group);
    context->saved_data["count"] = count;
    context->saved_data["epsilon"] = epsilon;
    context->saved_data["shifts"] = shift.has_value();
    return normalized(x, scale, shift, mean, var, epsilon);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &scale = saved[1], &mean = saved[2], &var = saved[3];
    const auto* group = reinterpret_cast<const SimclrGroup*>(context->saved_data["group"].toInt());
    const double epsilon = context->saved_data["epsilon"].toDouble();
    // As if the statistics were constants: scale / σ × dy, and the sums over this rank's images of dy × x̂ and of dy.
    auto [own, of_scale, of_shift] = at::native_batch_norm_backward(
        gradients[0], x, scale, mean, var, {}, {}, /*train=*/false, epsilon, {true, true, true});
    // What the statistics owe to x: scale / σ × (mean of dy + x̂ × mean of dy × x̂), over all ranks' images.
    Tensor sums = at::stack({of_scale, of_shift});
    group->sum(sums);
    const Tensor means = sums * (-1.0 / context->saved_data["count"].toDouble());
    const Tensor factor = scale * (var + epsilon).rsqrt();
    own.add_(normalized(x, factor * means[0], std::optional<Tensor>(factor * means[1]), mean, var, epsilon));
    const Tensor none;
    return {own, of_scale, context->saved_data["shifts"].toBool() ? of_shift : none, none, none, none, none, none};
  }
};

std::optional<Tensor> given(const Tensor* tensor) {
  return tensor == nullptr ? std::nullopt : std::optional<Tensor>(*tensor);
}

} // namespace

extern "C" char* simclr_sync_batch_norm(
    SimclrGroup* group, Tensor* x, Tensor* scale, Tensor* shift, Tensor* running_mean, Tensor* running_var,
    double momentum, double epsilon, Tensor** out) {
  return simclr::told([&] {
    *out = new Tensor(SyncBatchNorm::apply(
        *x, *scale, given(shift), given(running_mean), given(running_var), group, momentum, epsilon));
  });
}

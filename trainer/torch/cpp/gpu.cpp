// Which GPU computes, how precisely, and how much memory it has, by interfaces that all accelerators share.

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "torch.h"

extern "C" char* simclr_gpu_use(int device) {
  return simclr::guard([&] {
    c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA)
        .setDevice(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device)));
  });
}

extern "C" char* simclr_gpu_memory(int device, uint64_t* available, uint64_t* total, uint64_t* peak) {
  return simclr::guard([&] {
    auto* allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
    const auto index = static_cast<c10::DeviceIndex>(device);
    const auto [unused, all] = allocator->getMemoryInfo(index);
    const auto stats = allocator->getDeviceStats(index);
    const auto aggregate = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *available = unused;
    *total = all;
    *peak = static_cast<uint64_t>(stats.allocated_bytes[aggregate].peak);
  });
}

extern "C" char* simclr_pinned_zeros(int64_t bytes, at::Tensor** pinned) {
  return simclr::guard([&] {
    *pinned = new at::Tensor(at::zeros({bytes}, at::TensorOptions(at::kByte).pinned_memory(true)));
  });
}

extern "C" char* simclr_gpu_arithmetic(bool tf32, bool benchmark) {
  return simclr::guard([&] {
    auto& context = at::globalContext();
    context.setAllowTF32CuBLAS(tf32);
    context.setAllowTF32CuDNN(tf32);
    context.setBenchmarkCuDNN(benchmark);
  });
}

// Streams and events by c10's interface for all devices that have them, so that nothing of CUDA is needed to build this.

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "torch.h"

struct SimclrMoment {
  c10::Event event;
  c10::Device device;
};

struct SimclrSideStream {
  c10::impl::VirtualGuardImpl of_device;
  c10::Device device;
  c10::Stream stream;
};

namespace {

c10::Device gpu(int index) {
  return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
}

// When all that was asked of `stream` up to now is done. Such moments can be told apart in milliseconds.
SimclrMoment* recorded(const c10::Stream& stream) {
  auto moment = std::make_unique<SimclrMoment>(
      SimclrMoment{c10::Event(stream.device_type(), c10::EventFlag::BACKEND_DEFAULT), stream.device()});
  moment->event.record(stream);
  return moment.release();
}

} // namespace

extern "C" char* simclr_side_stream_open(int device, SimclrSideStream** side) {
  return simclr::guard([&] {
    const c10::impl::VirtualGuardImpl of_device(c10::DeviceType::CUDA);
    const auto stream = of_device.getStreamFromGlobalPool(gpu(device), /*isHighPriority=*/false);
    *side = new SimclrSideStream{of_device, gpu(device), stream};
  });
}

extern "C" void simclr_side_stream_close(SimclrSideStream* side) {
  delete side;
}

extern "C" char* simclr_side_stream_copy(
    SimclrSideStream* side, at::Tensor* pinned, at::Tensor** copy, SimclrMoment** done) {
  return simclr::guard([&] {
    const c10::Stream computing = side->of_device.exchangeStream(side->stream);
    try {
      auto made = std::make_unique<at::Tensor>(pinned->to(side->device, pinned->scalar_type(), /*non_blocking=*/true));
      // Its memory was taken for the side stream; it is not to be given away while the computing one still reads it.
      side->of_device.recordDataPtrOnStream(made->storage().data_ptr(), computing);
      *done = recorded(side->stream);
      *copy = made.release();
    } catch (...) {
      side->of_device.exchangeStream(computing);
      throw;
    }
    side->of_device.exchangeStream(computing);
  });
}

extern "C" char* simclr_moment_now(int device, SimclrMoment** now) {
  return simclr::guard([&] {
    *now = recorded(c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getStream(gpu(device)));
  });
}

extern "C" void simclr_moment_drop(SimclrMoment* moment) {
  delete moment;
}

extern "C" char* simclr_moment_hold(SimclrMoment* moment) {
  return simclr::guard([&] {
    moment->event.block(c10::impl::VirtualGuardImpl(moment->device.type()).getStream(moment->device));
  });
}

extern "C" char* simclr_moments_apart(SimclrMoment* earlier, SimclrMoment* later, double* milliseconds) {
  return simclr::guard([&] {
    earlier->event.synchronize();
    later->event.synchronize();
    *milliseconds = earlier->event.elapsedTime(later->event);
  });
}

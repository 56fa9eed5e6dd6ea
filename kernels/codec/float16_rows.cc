#include "kernels/device/highway_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/codec/float16_rows.cc"
#include "hwy/foreach_target.h"  // includes this file once per instruction set

#include "hwy/highway.h"
#include "kernels/codec/float16_rows.h"

HWY_BEFORE_NAMESPACE();
namespace pkv {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Calls convert(i, load) for whole vectors from place i on, where load(p) is what stands at p + i
// as floats, and returns the first place left over.
template <class Convert>
HWY_INLINE int ForEachVector(int count, const Convert& convert) {
  int i = 0;
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
  const hn::ScalableTag<float> d;
  const hn::Rebind<hwy::float16_t, decltype(d)> d16;
  const auto load = [&](const Float16Bits* in) HWY_ATTR {
    return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(in + i)));
  };
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (; i + lanes <= count; i += lanes) convert(d, i, load);
#endif
  return i;
}

void ConvertOn(const Float16Bits* in, int count, float* out) {
  int i = ForEachVector(
      count, [&](auto d, int at, const auto& load) HWY_ATTR { hn::StoreU(load(in), d, out + at); });
  for (; i < count; ++i) out[i] = Float16ToFloat(in[i]);
}

void SubtractOn(const Float16Bits* a, const Float16Bits* b, int count, float* out) {
  int i = ForEachVector(count, [&](auto d, int at, const auto& load) HWY_ATTR {
    hn::StoreU(hn::Sub(load(a), load(b)), d, out + at);
  });
  for (; i < count; ++i) out[i] = Float16ToFloat(a[i]) - Float16ToFloat(b[i]);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pkv {
namespace {

HWY_EXPORT(ConvertOn);
HWY_EXPORT(SubtractOn);

}  // namespace

void ConvertToFloat(const Float16Bits* in, int count, float* out) {
  HWY_DYNAMIC_DISPATCH(ConvertOn)(in, count, out);
}

void Subtract(const Float16Bits* a, const Float16Bits* b, int count, float* out) {
  HWY_DYNAMIC_DISPATCH(SubtractOn)(a, b, count, out);
}

}  // namespace pkv
#endif  // HWY_ONCE

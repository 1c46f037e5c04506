// The approximate instructions of PTX, as wrong as the PTX ISA lets them be: the simulator gives the
// nearest float, a GPU gives others, and what holds for both must hold for any results within these
// bounds. Which error a result has is a hash of instruction, operands and seed, so equal operands
// give equal results, as on a GPU; two of three are at one of the bounds.
//
// Source: PTX ISA 9.0, floating-point instructions; each bound stands in its instruction's section.

#include <math.h>
#include <stdint.h>
#include <string.h>

static uint64_t seed;
void standin_approximate(uint64_t with_seed) { seed = with_seed; }

static uint64_t hash(uint64_t x) {  // splitmix64
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}
// `exact`, wrong by at most `bound`. Zeros, infinities and NaN give what the ISA's tables say.
static float wrong(double exact, double bound, int instruction, float a, float b) {
    if (!isnormal(a) || !isnormal(b) || !isfinite(exact)) return (float)exact;
    uint32_t bits[2];
    memcpy(bits, &a, 4), memcpy(bits + 1, &b, 4);
    uint64_t drawn = hash(hash(hash(seed + instruction) ^ bits[0]) ^ bits[1]);
    double share = drawn % 3 ? (drawn % 3 == 1 ? 1 : -1) : (double)(drawn >> 32) / (1u << 31) - 1;
    float result = (float)(exact + share * bound);
    while (fabs(result - exact) > bound) result = nextafterf(result, (float)exact);
    return result;
}
static double two_units(double x) { return 2 * ldexp(1, ilogb(x) - 23); }

float standin_ex2(float a) { double x = exp2(a); return wrong(x, x * 0x1p-22, 0, a, 1); }
float standin_lg2(float a) {
    double x = log2(a), size = 0.5 < a && a < 2 ? 1 : fabs(x);
    return wrong(x, size * exp2(-22.6), 1, a, 1);
}
float standin_rcp(float a) { double x = 1.0 / a; return wrong(x, fabs(x) * 0x1p-23, 2, a, 1); }
float standin_rsqrt(float a) { double x = 1 / sqrt(a); return wrong(x, x * exp2(-22.9), 3, a, 1); }
float standin_sqrt(float a) { double x = sqrt(a); return wrong(x, x * 0x1p-23, 4, a, 1); }
float standin_sin(float a) {
    return wrong(sin(a), exp2(fabsf(a) <= 6.2831853f ? -20.5 : -14.7), 5, a, 1);
}
float standin_cos(float a) {
    return wrong(cos(a), exp2(fabsf(a) <= 6.2831853f ? -20.5 : -14.7), 6, a, 1);
}
float standin_tanh(float a) { double x = tanh(a); return wrong(x, fabs(x) * 0x1p-11, 7, a, 1); }
float standin_div(float a, float b) {
    double x = (double)a / b;
    return wrong(x, x ? two_units(x) : 0, 8, a, b);
}

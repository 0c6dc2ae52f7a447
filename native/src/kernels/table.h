/* The one thing an instruction-set file gives away: its table. TABLE and NAME are its own. */

const simd_kernels TABLE = {
    .name = NAME,
    .chacha = chacha,
    .lattice = lattice,
    .gaussian_f64 = gaussian_f64,
    .gaussian_f32 = gaussian_f32,
    .narrow = narrow,
    .mask = mask,
    .encode = {{encode_f32_i16, encode_f32_i32}, {encode_f64_i16, encode_f64_i32}},
    .encode_ready = {{encode_ready_f32_i16, encode_ready_f32_i32},
                     {encode_ready_f64_i16, encode_ready_f64_i32}},
    .decode = decode,
    .decode_sum = decode_sum,
    .fence = fence,
    .sum = {sum_uint8_t, sum_uint16_t, sum_uint32_t, sum_uint64_t, sum_float, sum_double},
    .squares = squares,
};

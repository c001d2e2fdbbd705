//! The factors of the inverse transform, for the plain code and the vector kernels alike.

/// The rotations' factors, 13 bits behind the point.
pub const SUM: [i16; 2] = [8192, 8192];
pub const DIFFERENCE: [i16; 2] = [8192, -8192];
pub const EVEN: [[i16; 2]; 2] = [[4433, 4433 - 15137], [4433 + 6270, 4433]];
pub const ODD_SUMS: [[i16; 2]; 2] = [[9633 - 16069, 9633], [9633, 9633 - 3196]];
pub const ODD: [[i16; 2]; 4] =
    [[2446 - 7373, -7373], [16819 - 20995, -20995], [-20995, 25172 - 20995], [-7373, 12299 - 7373]];

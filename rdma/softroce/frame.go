package softroce

// frameBytes is the room of one frame of the links here: the largest path MTU with
// BTH, the longest extension header, pad and ICRC, rounded up so that frames begin
// on cache lines (4096 + 12 + 28 + 3 + 4 = 4143 → 4160).
const frameBytes = 4160

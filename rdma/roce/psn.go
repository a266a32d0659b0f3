package roce

// PSNMask masks a 24-bit packet sequence number.
const PSNMask = 1<<24 - 1

// PSNAdd is psn + n modulo 2^24.
func PSNAdd(psn, n uint32) uint32 { return (psn + n) & PSNMask }

// PSNDiff is the signed distance a - b modulo 2^24, in [-2^23, 2^23): negative
// when a comes before b.
func PSNDiff(a, b uint32) int32 { return int32((a-b)<<8) >> 8 }

package roce

import (
	"math/bits"
	"os"
	"regexp"
	"strconv"
	"testing"
)

// power is x^n mod P, reflected as PCLMULQDQ wants it: 33 bits.
func power(n int) uint64 {
	const p = 0x104c11db7
	r := uint64(1)
	for range n {
		if r <<= 1; r&(1<<32) != 0 {
			r ^= p
		}
	}
	return uint64(bits.Reverse32(uint32(r))) << 1
}

// TestFoldConstants computes the numbers of icrc_amd64.s again.
func TestFoldConstants(t *testing.T) {
	source, err := os.ReadFile("icrc_amd64.s")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, m := range regexp.MustCompile(`DATA (\w+<>\+\d)\(SB\)/8, \$(\S+)`).FindAllStringSubmatch(string(source), -1) {
		if got[m[1]], err = strconv.ParseUint(m[2], 0, 64); err != nil {
			t.Fatal(err)
		}
	}
	// 2^64/P by long division, reflected.
	mu, rest := uint64(0), uint64(1)
	for i := range 65 {
		if i > 0 {
			rest <<= 1
		}
		mu <<= 1
		if rest&(1<<32) != 0 {
			rest ^= 0x104c11db7
			mu |= 1
		}
	}
	for name, want := range map[string]uint64{
		"fold256<>+0": power(16*128 + 32), "fold256<>+8": power(16*128 - 32), "fold64<>+0": power(4*128 + 32), "fold64<>+8": power(4*128 - 32), "fold48<>+0": power(3*128 + 32), "fold48<>+8": power(3*128 - 32), "fold32<>+0": power(2*128 + 32), "fold32<>+8": power(2*128 - 32),
		"fold16<>+0": power(128 + 32), "fold16<>+8": power(128 - 32),
		"fold8<>+0": power(64), "barrett<>+0": bits.Reverse64(0x104c11db7) >> 31, "barrett<>+8": bits.Reverse64(mu) >> 31,
	} {
		if got[name] != want {
			t.Errorf("%s is %#x, computed %#x", name, got[name], want)
		}
	}
}

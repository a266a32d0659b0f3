package hugepages

import "testing"

func TestClasses(t *testing.T) {
	for c := range numClasses {
		if slotBytes(c)%slotAlign != 0 {
			t.Errorf("slots of class %d (%d B) are not aligned", c, slotBytes(c))
		}
		lower := 0
		if c > 0 {
			lower = classPayload(c-1) + 1
		}
		if lower > classPayload(c) {
			t.Fatalf("class %d is not larger than the one before", c)
		}
		for _, n := range []int{lower, (lower + classPayload(c)) / 2, classPayload(c)} {
			if got := classOf(n); got != c {
				t.Errorf("classOf(%d) = %d, want %d", n, got, c)
			}
		}
	}
	for c, want := range map[int]int{0: 256, 4: 4096, 8: 64 << 10, 9: 96 << 10, 10: 128 << 10, 22: 8 << 20, 28: 64 << 20} {
		if got := classPayload(c); got != want {
			t.Errorf("class %d has %d, want %d", c, got, want)
		}
	}
	if maxChunkTarget/slotBytes(0) >= 1<<slotBits {
		t.Error("a chunk's slots do not fit slotBits")
	}
	if units := MaxArenaBytes / slotAlign; units >= 1<<(64-usageBits) || MaxArenaBytes/slotBytes(0) >= 1<<usageBits {
		t.Error("a usage word does not hold the largest arena")
	}
}

func TestMaxBytesFollowsTheArena(t *testing.T) {
	for _, tt := range []struct{ arena, want int }{
		{4096, 2048}, {64 << 10, 32 << 10}, {1 << 20, 768 << 10}, {8 << 20, 6 << 20}, {16 << 20, 12 << 20}, {64 << 20, 48 << 20}, {128 << 20, 64 << 20},
	} {
		p := newTestPool(t, tt.arena)
		if p.MaxBytes() != tt.want {
			t.Errorf("arena of %d: MaxBytes %d, want %d", tt.arena, p.MaxBytes(), tt.want)
		}
		mustGet(t, p, p.MaxBytes(), Other).Release()
	}
}

package broker

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/millrace/millrace/broker/seglog"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/serialize"
)

// bomb is a batch whose header describes one value of claimed bytes, and whose
// body decompresses to actual bytes. Its checksum is right.
func bomb(t *testing.T, how serialize.Compression, claimed, actual int) []byte {
	t.Helper()
	batch := batchOf(strings.Repeat("\x00", claimed))
	size := len(batch) - claimed + actual - serialize.HeaderBytes
	body := make([]byte, size)
	switch how {
	case serialize.S2:
		body = s2.Encode(nil, body)
	case serialize.Zstd:
		w, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		body = w.EncodeAll(body, nil)
	}
	out := append(batch[:serialize.HeaderBytes:serialize.HeaderBytes], body...)
	out[17] = byte(how)
	binary.LittleEndian.PutUint32(out[20:], uint32(len(out)))
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Checksum(out[serialize.HeaderBytes:], castagnoli), castagnoli, out[16:serialize.HeaderBytes])
	binary.LittleEndian.PutUint32(out[4:], sum)
	return out
}

// Compressed batches that are not what their headers say are refused where they
// enter, and their connection goes on.
func TestCompressionBombs(t *testing.T) {
	const limit = limitOfRig
	for _, how := range []serialize.Compression{serialize.S2, serialize.Zstd} {
		for _, tc := range []struct {
			name            string
			claimed, actual int
			code            wire.Code
		}{
			{"honest", 32 << 10, 32 << 10, 0},
			{"describes more than may be stored", limit, limit, wire.TooLarge},
			{"describes 16 MiB", 16 << 20, 1 << 10, wire.TooLarge},
			{"holds 8 MiB, describes 1 KiB", 1 << 10, 8 << 20, wire.CorruptBatch},
			{"holds less than it describes", 32 << 10, 16 << 10, wire.CorruptBatch},
		} {
			t.Run(how.String()+"/"+tc.name, func(t *testing.T) {
				frame := produceFrame(1, "t", bomb(t, how, tc.claimed, tc.actual))
				r := newRig(t, 4<<20, CoreConfig{}, seglog.Options{})
				p := r.connect(wire.RoleClient)
				p.deliver(frame, produceFrame(2, "t", batchOf("x")))
				r.core.Commit()
				want, second := "ack 0", "ack 1"
				if tc.code != 0 {
					want, second = tc.code.Error(), "ack 0"
				}
				if got := answered(t, p.take()); got[1] != want || got[2] != second || p.reason != nil {
					t.Errorf("answered %v, ended with %v; want %s", got, p.reason, want)
				}
				if d := r.core.checker.decoder; d != nil && tc.code == wire.TooLarge {
					t.Error("it was decompressed to find out")
				}
			})
		}
	}
}

// A proxy has checked what it passes on: the broker does not decompress it again.
// Whoever consumes it is on his guard all the same.
func TestProxiesAreTrustedWithBodies(t *testing.T) {
	r := newRig(t, 4<<20, CoreConfig{}, seglog.Options{})
	p := r.connect(wire.RoleProxy)
	bad := bomb(t, serialize.S2, 1<<10, 1<<20)
	p.deliver(produceFrame(1, "t", bad), produceFrame(2, "t", bomb(t, serialize.Zstd, limitOfRig, limitOfRig)))
	r.core.Commit()
	if got := answered(t, p.take()); got[1] != "ack 0" || got[2] != wire.TooLarge.Error() {
		t.Fatalf("answered %v", got)
	}
	if r.core.checker.decoder != nil {
		t.Error("the broker decompressed a proxy's batch")
	}
	d, err := serialize.NewDecoder(64 << 10)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Open(bad); !errors.Is(err, serialize.ErrCorrupt) {
		t.Errorf("a consumer got %v", err)
	}
}

const limitOfRig = 64<<10 - frameOverhead

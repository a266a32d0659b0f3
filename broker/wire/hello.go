package wire

import "encoding/binary"

// Hello is the first frame of either side of a connection.
type Hello struct {
	Version uint16
	Role    Role
	// Durability of the broker's acknowledgements (seglog.Durability); 0 from
	// requesters, and from a proxy that has not reached its broker yet.
	Durability uint8
	// MaxFrameBytes is the largest frame that the sender takes.
	MaxFrameBytes uint32
}

// HelloBytes is the size of a Hello.
const HelloBytes = helloBytes

// AppendHello appends h.
func AppendHello(dst []byte, h Hello) []byte {
	dst = appendHeader(dst, KindHello, byte(h.Role), h.Version, 0)
	dst = append(dst, helloMagic...)
	dst = binary.LittleEndian.AppendUint32(dst, h.MaxFrameBytes)
	return append(dst, h.Durability, 0, 0, 0)
}

// ParseHello reads a Hello. Of another version than this package's it fills in
// Version and Role alone, since what follows may have changed, and err is nil: the
// caller compares versions and says so to the peer.
func ParseHello(p []byte) (Hello, error) {
	if len(p) < HeaderBytes+len(helloMagic) || Kind(p[0]) != KindHello || string(p[HeaderBytes:HeaderBytes+len(helloMagic)]) != helloMagic {
		return Hello{}, bad("not a Hello of a millrace broker, proxy or client (it begins with %q)", p[:min(len(p), HeaderBytes+len(helloMagic))])
	}
	h := Hello{Version: binary.LittleEndian.Uint16(p[2:]), Role: Role(p[1])}
	if h.Version != Version {
		return h, nil
	}
	if len(p) != helloBytes || p[17] != 0 || p[18] != 0 || p[19] != 0 {
		return Hello{}, bad("a Hello of %d bytes, version %d has %d", len(p), Version, helloBytes)
	}
	if h.Role < RoleClient || h.Role > RoleBroker {
		return Hello{}, bad("a Hello of unknown role %d", p[1])
	}
	h.MaxFrameBytes, h.Durability = binary.LittleEndian.Uint32(p[12:]), p[16]
	return h, nil
}

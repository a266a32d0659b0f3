package rocelayer

import (
	"github.com/google/gopacket/layers"

	"github.com/millrace/millrace/rdma/roce"
)

// CheckICRC tells whether payload, which follows udp, is a RoCEv2 packet with a
// correct ICRC. ip is the *layers.IPv4 or *layers.IPv6 in front, as it was on the
// wire: unlike the layers themselves, it does not depend on the UDP port.
func CheckICRC(ip any, udp *layers.UDP, payload []byte) bool {
	if len(payload) < roce.MinPacket || len(udp.Contents) != 8 {
		return false
	}
	pseudo := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	switch ip := ip.(type) {
	case *layers.IPv4:
		if len(ip.Contents) != 20 {
			return false
		}
		pseudo = append(pseudo, ip.Contents...)
		h := pseudo[8:]
		h[1], h[8], h[10], h[11] = 0xff, 0xff, 0xff, 0xff // TOS, TTL, checksum
	case *layers.IPv6:
		if len(ip.Contents) != 40 {
			return false
		}
		pseudo = append(pseudo, ip.Contents...)
		h := pseudo[8:]
		h[0] |= 0x0f // traffic class, flow label, hop limit
		h[1], h[2], h[3], h[7] = 0xff, 0xff, 0xff, 0xff
	default:
		return false
	}
	pseudo = append(pseudo, udp.Contents[:6]...)
	pseudo = append(pseudo, 0xff, 0xff)
	covered := payload[:len(payload)-roce.ICRCLen]
	return roce.Sum(pseudo, covered) == roce.GetICRC(payload[len(covered):])
}

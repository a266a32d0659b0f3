package roce

const (
	// MinPathMTU and MaxPathMTU bound the payload of a packet, bytes: the IBTA's path MTUs.
	MinPathMTU = 256
	MaxPathMTU = 4096
	// MaxHeaders is what a netdev's MTU must hold beside the payload: IPv6 40, UDP 8,
	// BTH 12, RETH 16, ICRC 4 (rxe's RXE_MAX_HDR_LENGTH).
	MaxHeaders = 40 + 8 + BTHLen + RETHLen + ICRCLen
)

// PathMTU is the largest path MTU that fits a network device's MTU, both in
// bytes; 0 if not even the smallest does. It chooses as rxe does, so both ends
// of a link agree.
func PathMTU(netdevMTU int) int {
	for m := MaxPathMTU; m >= MinPathMTU; m /= 2 {
		if m+MaxHeaders <= netdevMTU {
			return m
		}
	}
	return 0
}

// ValidPathMTU tells whether n is one of 256, 512, 1024, 2048 and 4096.
func ValidPathMTU(n int) bool { return n >= MinPathMTU && n <= MaxPathMTU && n&(n-1) == 0 }

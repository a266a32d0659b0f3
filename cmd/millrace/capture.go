package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"github.com/spf13/cobra"

	"github.com/millrace/millrace/rdma/roce/rocelayer"
)

func captureCommand() *cobra.Command {
	var port, file string
	var count int
	cmd := &cobra.Command{
		Use:   "capture --port NETDEV --write FILE.pcapng",
		Short: "Write the RoCEv2 packets of a network device to a file, until interrupted",
		Long: `Write the packets of a network device that are RoCEv2, whatever their UDP port, to a pcapng file.
A packet counts as RoCEv2 if its ICRC is correct. Needs CAP_NET_RAW. Frames of memif ports pass no network
device: they cannot be captured this way.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if port == "" || file == "" {
				return usageError("capture needs --port NETDEV and --write FILE.pcapng")
			}
			n, err := capture(cmd.Context(), port, file, count)
			if err == nil || n > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "%d RoCEv2 packets written to %s\n", n, file)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&port, "port", "", "network device, for instance lo")
	cmd.Flags().StringVar(&file, "write", "", "file to write; it is replaced")
	cmd.Flags().IntVar(&count, "count", 0, "stop after so many packets")
	return cmd
}

func capture(ctx context.Context, port, file string, count int) (n int, err error) {
	sock, ifc, err := openCapture(port)
	if err != nil {
		return 0, err
	}
	defer sock.Close()
	return writeCapture(ctx, sock, ifc, file, count)
}

func openCapture(port string) (*os.File, *net.Interface, error) {
	ifc, err := net.InterfaceByName(port)
	if err != nil {
		return nil, nil, fmt.Errorf("capture: no network device %q (ip link shows them)", port)
	}
	sock, err := openPacketSocket(ifc)
	if errors.Is(err, syscall.EPERM) {
		return nil, nil, fmt.Errorf("capture: not permitted: run as root, or give the program CAP_NET_RAW (setcap cap_net_raw+ep)")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("capture: %w", err)
	}
	return sock, ifc, nil
}

func writeCapture(ctx context.Context, sock *os.File, ifc *net.Interface, file string, count int) (n int, err error) {
	f, err := os.Create(file)
	if err != nil {
		return 0, fmt.Errorf("capture: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w, err := pcapgo.NewNgWriterInterface(f, pcapgo.NgInterface{
		Name: ifc.Name, LinkType: layers.LinkTypeEthernet, SnapLength: uint32(ifc.MTU) + 18,
	}, pcapgo.DefaultNgWriterOptions)
	if err != nil {
		return 0, fmt.Errorf("capture: %w", err)
	}
	defer func() { err = errors.Join(err, w.Flush()) }()
	stop := context.AfterFunc(ctx, func() { _ = sock.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 1<<17)
	for {
		size, err := sock.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("capture: %w", err)
		}
		for frame := range cutTrain(buf[:size]) {
			if findRoCE(frame) == nil {
				continue
			}
			info := gopacket.CaptureInfo{Timestamp: time.Now(), CaptureLength: len(frame), Length: len(frame)}
			if err := w.WritePacket(info, frame); err != nil {
				return n, fmt.Errorf("capture: %w", err)
			}
			if n++; n == count {
				return n, nil
			}
		}
	}
}

// A virtio_net_hdr precedes each frame (linux/virtio_net.h).
const (
	vnetHdrLen   = 10
	gsoTypeOff   = 1
	gsoSizeOff   = 4
	gsoUDPL4     = 5
	ethernetLen  = 14
	etherIPv4    = 0x0800
	etherIPv6    = 0x86dd
	udpHeaderLen = 8
)

// cutTrain yields the frames that the wire would carry: data is one read of a
// packet socket, where several UDP packets that were sent with segmentation
// offload arrive as one. The slices are valid until the next is asked for.
func cutTrain(data []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if len(data) < vnetHdrLen+ethernetLen {
			return
		}
		kind, size, frame := data[gsoTypeOff], int(binary.NativeEndian.Uint16(data[gsoSizeOff:])), data[vnetHdrLen:]
		ipLen := 0
		switch binary.BigEndian.Uint16(frame[ethernetLen-2:]) {
		case etherIPv4:
			ipLen = 20 // RoCEv2 has no IP options
		case etherIPv6:
			ipLen = 40
		}
		head := ethernetLen + ipLen + udpHeaderLen
		if kind != gsoUDPL4 || size == 0 || ipLen == 0 || len(frame) < head {
			yield(frame)
			return
		}
		cut := make([]byte, 0, head+size)
		for i, rest := 0, frame[head:]; len(rest) > 0; i++ {
			payload := rest[:min(size, len(rest))]
			rest = rest[len(payload):]
			cut = append(append(cut[:0], frame[:head]...), payload...)
			ip, udp := cut[ethernetLen:], cut[ethernetLen+ipLen:]
			binary.BigEndian.PutUint16(udp[4:], uint16(udpHeaderLen+len(payload)))
			if ipLen == 40 {
				binary.BigEndian.PutUint16(ip[4:], uint16(udpHeaderLen+len(payload)))
			} else {
				binary.BigEndian.PutUint16(ip[2:], uint16(ipLen+udpHeaderLen+len(payload)))
				binary.BigEndian.PutUint16(ip[4:], binary.BigEndian.Uint16(ip[4:])+uint16(i))
				ip[10], ip[11] = 0, 0
				binary.BigEndian.PutUint16(ip[10:], internetChecksum(ip[:ipLen]))
			}
			if !yield(cut) {
				return
			}
		}
	}
}

// internetChecksum is the checksum of RFC 1071.
func internetChecksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// rocePacket is one decoded packet.
type rocePacket struct {
	src, dst string
	roce     gopacket.Packet
	payload  []byte
	icrcOK   bool
}

// findRoCE decodes an Ethernet frame; nil if it is not RoCEv2.
func findRoCE(frame []byte) *rocePacket {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	udp, _ := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if udp == nil || p.NetworkLayer() == nil {
		return nil
	}
	ok := rocelayer.CheckICRC(p.NetworkLayer(), udp, udp.Payload)
	if !ok && p.Layer(rocelayer.LayerTypeBTH) == nil {
		return nil
	}
	flow := p.NetworkLayer().NetworkFlow()
	return &rocePacket{
		src: net.JoinHostPort(flow.Src().String(), fmt.Sprint(uint16(udp.SrcPort))), dst: net.JoinHostPort(flow.Dst().String(), fmt.Sprint(uint16(udp.DstPort))),
		roce: gopacket.NewPacket(udp.Payload, rocelayer.LayerTypeBTH, gopacket.NoCopy), payload: udp.Payload, icrcOK: ok,
	}
}

func (p *rocePacket) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s > %s", p.src, p.dst)
	bth, _ := p.roce.Layer(rocelayer.LayerTypeBTH).(*rocelayer.BTH)
	if bth == nil {
		return b.String() + " malformed"
	}
	fmt.Fprintf(&b, " %v qp %#06x psn %d", bth.Opcode, bth.DestQPN, bth.PSN)
	if bth.AckReq {
		b.WriteString(" ackreq")
	}
	if a, ok := p.roce.Layer(rocelayer.LayerTypeAETH).(*rocelayer.AETH); ok {
		fmt.Fprintf(&b, " %v msn %d", a.Syndrome, a.MSN)
	}
	if i, ok := p.roce.Layer(rocelayer.LayerTypeImmDt).(*rocelayer.ImmDt); ok {
		fmt.Fprintf(&b, " imm %#x", i.Value)
	}
	if r, ok := p.roce.Layer(rocelayer.LayerTypeRETH).(*rocelayer.RETH); ok {
		fmt.Fprintf(&b, " va %#x rkey %#x len %d", r.VA, r.RKey, r.DMALen)
	}
	if app := p.roce.ApplicationLayer(); app != nil {
		fmt.Fprintf(&b, " data %d", len(app.LayerContents()))
	}
	if err := p.roce.ErrorLayer(); err != nil {
		fmt.Fprintf(&b, " malformed: %v", err.Error())
	}
	if !p.icrcOK {
		b.WriteString(" ICRC BAD")
	}
	return b.String()
}

func decodeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "decode FILE",
		Short: "Print the RoCEv2 packets of a capture, one per line",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError("decode takes one file: pcapng, as `millrace capture` writes it")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return decode(cmd.OutOrStdout(), args[0]) },
	}
}

func decode(out io.Writer, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		return fmt.Errorf("decode: %s is not a pcapng file: %w", file, err)
	}
	if lt := r.LinkType(); lt != layers.LinkTypeEthernet {
		return fmt.Errorf("decode: %s was captured on a link of type %v, want Ethernet", file, lt)
	}
	for {
		data, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("decode: %s ends in the middle of a packet: %w", file, err)
		}
		if p := findRoCE(data); p != nil {
			if _, err := fmt.Fprintf(out, "%s %v\n", info.Timestamp.Format("15:04:05.000000"), p); err != nil {
				return err
			}
		}
	}
}

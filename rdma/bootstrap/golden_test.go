package bootstrap_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/docbytes"
	"github.com/millrace/millrace/rdma/bootstrap"
)

// The examples of docs/PROTOCOL.md are what is sent, and what is understood.
func TestGoldenFrames(t *testing.T) {
	instance := bootstrap.Instance{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	offer := strings.TrimSuffix(docbytes.Block(t, "json bootstrap-offer"), "\n")
	header := binary.BigEndian.AppendUint16([]byte("MLRB\x00\x02\x02\x00"), uint16(len(offer)))
	offered := bootstrap.QP{
		Device: "softroce+udp", Label: "user-space", GID: netip.MustParseAddr("192.0.2.1"), UDPPort: 4791, QPN: 1193046, PSN: 16777215,
		PathMTU: 1024, Credits: 1, ReceiveBytes: 8188, MaxMessage: 4194304,
	}
	qp := "{" + offer[strings.Index(offer, `"qp"`):]
	accept := func(body string) []byte {
		return append(binary.BigEndian.AppendUint16([]byte("MLRB\x00\x02\x03\x00"), uint16(len(body))), body...)
	}
	for _, tc := range []struct {
		frame []byte
		value bootstrap.Message
	}{
		{docbytes.Hex(t, "bootstrap-hello"), &bootstrap.Hello{Instance: instance, Loop: 1, Fabric: "softroce+udp"}},
		{append(header, offer...), &bootstrap.Offer{Instance: instance, Loop: 1, QP: offered}},
		{accept(qp), &bootstrap.Accept{QP: offered}},
		{accept(strings.TrimSuffix(qp, "}}") + `},"unsummed":true}`), &bootstrap.Accept{QP: offered, Unsummed: true}},
		{[]byte("MLRB\x00\x02\x04\x00\x00\x02{}"), &bootstrap.Ready{}},
		{[]byte("MLRB\x00\x02\x05\x00\x00\x02{}"), &bootstrap.Stale{}},
		{[]byte("MLRB\x00\x02\x06\x00\x00\x0f{\"reason\":\"no\"}"), &bootstrap.Refusal{Reason: "no"}},
		{[]byte("MLRB\x00\x02\x07\x00\x00\x10{\"orderly\":true}"), &bootstrap.Bye{Orderly: true}},
		{[]byte("MLRB\x00\x02\x08\x00\x00\x02{}"), &bootstrap.Verified{}},
		{[]byte("MLRB\x00\x02\x09\x00\x00\x0f{\"reason\":\"no\"}"), &bootstrap.Fallback{Reason: "no"}},
		{[]byte("MLRB\x00\x02\x0a\x00\x00\x02{}"), &bootstrap.Beat{}},
	} {
		if got, err := bootstrap.Append(nil, tc.value); err != nil || !bytes.Equal(got, tc.frame) {
			t.Errorf("%T is sent as %q, %v", tc.value, got, err)
		}
		if got, err := bootstrap.Read(bytes.NewReader(tc.frame)); err != nil || !reflect.DeepEqual(got, tc.value) {
			t.Errorf("%T is read as %+v, %v", tc.value, got, err)
		}
	}
}

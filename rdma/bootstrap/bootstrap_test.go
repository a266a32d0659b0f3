package bootstrap

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/millrace/millrace/netpoll"
)

func goodQP() QP {
	return QP{
		Device: "softroce+udp", Label: "user-space", GID: netip.MustParseAddr("192.0.2.1"), UDPPort: 4791, QPN: 0x123456, PSN: 0xffffff,
		PathMTU: 4096, Credits: 63, ReceiveBytes: 8192, MaxMessage: 4 << 20,
	}
}

func goodOffer() *Offer {
	return &Offer{Instance: Instance{1, 2, 3}, Loop: 1 << 40, Shared: true, Link: map[string]string{"socket": "/run/x", "flag": ""}, QP: goodQP()}
}

func TestRoundTrip(t *testing.T) {
	var stream []byte
	in := []Message{
		&Hello{Instance: Self(), Loop: 7, Fabric: "memif"}, goodOffer(), &Accept{QP: goodQP()}, &Ready{}, &Stale{},
		&Refusal{Reason: "größer als erlaubt"}, &Bye{Orderly: true},
		&Hello{Instance: Self(), Fabric: "udp", Fallback: true}, &Verified{}, &Fallback{Reason: "no device"}, &Beat{},
	}
	for _, m := range in {
		var err error
		if stream, err = Append(stream, m); err != nil {
			t.Fatal(err)
		}
	}
	// One byte at a time, as TCP may deliver it.
	r := &oneByte{stream}
	for _, want := range in {
		got, err := Read(r)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%v: got %+v, %v", want.kind(), got, err)
		}
	}
	if _, err := Read(r); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

type oneByte struct{ b []byte }

func (r *oneByte) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	p[0] = r.b[0]
	r.b = r.b[1:]
	return 1, nil
}

func TestBounds(t *testing.T) {
	for _, tc := range []struct {
		text   string
		change func(*Offer)
	}{
		{"instance is missing", func(o *Offer) { o.Instance = Instance{} }},
		{"17 link parameters", func(o *Offer) {
			o.Link = map[string]string{}
			for i := range 17 {
				o.Link[string(rune('a'+i))] = "x"
			}
		}},
		{"link parameter name", func(o *Offer) { o.Link = map[string]string{"": "x"} }},
		{"link parameter k", func(o *Offer) { o.Link = map[string]string{"k": strings.Repeat("x", 513)} }},
		{"cannot be printed", func(o *Offer) { o.Link = map[string]string{"k": "a\nb"} }},
		{"device is empty", func(o *Offer) { o.QP.Device = "" }},
		{"label", func(o *Offer) { o.QP.Label = strings.Repeat("x", 65) }},
		{"not UTF-8", func(o *Offer) { o.QP.Label = "\xff" }},
		{"gid", func(o *Offer) { o.QP.GID = netip.Addr{} }},
		{"gid", func(o *Offer) { o.QP.GID = netip.IPv4Unspecified() }},
		{"gid", func(o *Offer) { o.QP.GID = netip.MustParseAddr("224.0.0.1") }},
		{"gid", func(o *Offer) { o.QP.GID = netip.MustParseAddr("fe80::1%eth0") }},
		{"gid", func(o *Offer) { o.QP.GID = netip.MustParseAddr("::ffff:192.0.2.1") }},
		{"udpPort", func(o *Offer) { o.QP.UDPPort = 0 }},
		{"qpn 1 ", func(o *Offer) { o.QP.QPN = 1 }},
		{"qpn 16777215 ", func(o *Offer) { o.QP.QPN = 1<<24 - 1 }},
		{"qpn 16777216 ", func(o *Offer) { o.QP.QPN = 1 << 24 }},
		{"psn", func(o *Offer) { o.QP.PSN = 1 << 24 }},
		{"pathMTU 1500", func(o *Offer) { o.QP.PathMTU = 1500 }},
		{"credits 0", func(o *Offer) { o.QP.Credits = 0 }},
		{"credits 4097", func(o *Offer) { o.QP.Credits = 4097 }},
		{"receiveBytes 255", func(o *Offer) { o.QP.ReceiveBytes = 255 }},
		{"receiveBytes 8388609", func(o *Offer) { o.QP.ReceiveBytes = 8<<20 + 1 }},
		{"maxMessage", func(o *Offer) { o.QP.MaxMessage = 0 }},
		{"maxMessage", func(o *Offer) { o.QP.MaxMessage = 1<<30 + 1 }},
	} {
		o := goodOffer()
		tc.change(o)
		if _, err := Append(nil, o); err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v", tc.text, err)
		}
	}
	big := goodOffer()
	big.Link = map[string]string{}
	for i := range 16 {
		big.Link[string(rune('a'+i))] = strings.Repeat("x", 500)
	}
	if _, err := Append(nil, big); err == nil || !strings.Contains(err.Error(), "shorten the link parameters") {
		t.Errorf("too long: %v", err)
	}
}

func TestReadRefusals(t *testing.T) {
	frame := func(head, body string) string {
		return head + string([]byte{byte(len(body) >> 8), byte(len(body))}) + body
	}
	const hello = "MLRB\x00\x02\x01\x00"
	for _, tc := range []struct{ name, in, text string }{
		{"foreign", "SSH-2.0-OpenSSH", "another protocol"},
		{"foreign and short", "+OK", "another protocol"},
		{"cut header", "MLRB\x00\x01", "in the middle"},
		{"cut magic", "ML", "in the middle"},
		{"cut body", hello + "\x00\x05{}", "in the middle"},
		{"version", "MLRB\x01\x00\x01\x00\x00\x00", "version 256, this side 2"},
		{"kind", "MLRB\x00\x02\x63\x00\x00\x00", "unknown bootstrap frame 99"},
		{"flags", "MLRB\x00\x02\x01\x02\x00\x00", "bad header"},
		{"fallback of a bye", "MLRB\x00\x02\x07\x01\x00\x00", "bad header"},
		{"long and foreign", "MLRB\x00\x03\x01\x01\xff\xff", "bad header"},
		{"long", hello + "\x10\x01", "4097 bytes, limit 4096"},
		{"empty body", frame(hello, ""), "EOF"},
		{"not an object", frame(hello, "[1]"), "cannot unmarshal"},
		{"unknown field", frame(hello, `{"admin":true}`), "unknown field"},
		{"two objects", frame(hello, `{"instance":"01000000000000000000000000000000","loop":1,"fabric":"udp"}{}`), "bytes after"},
		{"short instance", frame(hello, `{"instance":"01"}`), "32 hex digits"},
		{"no fabric", frame(hello, `{"instance":"01000000000000000000000000000000"}`), "fabric"},
		{"null", frame(hello, `null`), "instance is missing"},
	} {
		_, err := Read(strings.NewReader(tc.in))
		if !errors.Is(err, netpoll.ErrProtocol) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// What two releases need to tell each other is the same in all versions.
func TestOtherVersion(t *testing.T) {
	_, err := Read(strings.NewReader("MLRB\x00\x07\x01\x01\x00\x03{#}"))
	var v *VersionError
	if !errors.As(err, &v) || v.Version != 7 || !v.Fallback {
		t.Errorf("hello: %v", err)
	}
	if m, err := Read(strings.NewReader("MLRB\x00\x07\x06\x00\x00\x16{\"reason\":\"x\",\"new\":1}")); err != nil || !reflect.DeepEqual(m, &Refusal{Reason: "x"}) {
		t.Errorf("refusal: %+v, %v", m, err)
	}
	if m, err := Read(strings.NewReader("MLRB\x00\x07\x09\x00\x00\x0e{\"reason\":\"x\"}")); err != nil || !reflect.DeepEqual(m, &Fallback{Reason: "x"}) {
		t.Errorf("fallback: %+v, %v", m, err)
	}
}

// FuzzRead feeds arbitrary bytes: what is accepted must be within the bounds and
// survive a round trip.
func FuzzRead(f *testing.F) {
	for _, m := range []Message{&Hello{Instance: Instance{1}, Loop: 7, Fabric: "udp"}, goodOffer(), &Accept{QP: goodQP()}, &Ready{}, &Refusal{Reason: "no"}, &Bye{}, &Verified{}, &Fallback{Reason: "no"}, &Beat{}} {
		b, err := Append(nil, m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := Read(bytes.NewReader(in))
		if err != nil || len(in) > maxBody-512 { // fields left out would be written out
			return
		}
		b, err := Append(nil, m)
		if err != nil {
			t.Fatalf("accepted what may not be sent: %+v: %v", m, err)
		}
		again, err := Read(bytes.NewReader(b))
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Fatalf("%+v became %+v, %v", m, again, err)
		}
	})
}

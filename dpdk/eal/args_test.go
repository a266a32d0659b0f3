package eal

import (
	"slices"
	"strings"
	"testing"
)

func TestInitArgs(t *testing.T) {
	for _, tc := range []struct {
		name      string
		args      []string
		cpus      []int
		hugepages bool
		want      string
	}{
		{"ordinary memory", nil, []int{0, 1}, false, "--no-telemetry --lcores 0@(0,1) --no-huge --no-shconf -m 512 --no-pci"},
		{"huge pages", nil, []int{1}, true, "--no-telemetry --lcores 0@(1) --in-memory --no-pci"},
		{"a NIC", []string{"--allow", "0000:01:00.0"}, []int{3}, true, "--no-telemetry --lcores 0@(3) --in-memory --allow 0000:01:00.0"},
		{"own choice of memory and cores", []string{"-l", "2", "--file-prefix=x", "--telemetry"}, []int{0}, false, "--no-pci -l 2 --file-prefix=x --telemetry"},
		{"own size", []string{"-m", "64"}, []int{0}, false, "--no-telemetry --lcores 0@(0) --no-huge --no-shconf --no-pci -m 64"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, private := initArgs(tc.args, tc.cpus, tc.hugepages)
			if want := append([]string{"millrace"}, strings.Fields(tc.want)...); !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
			if want := !slices.Contains(tc.args, "--file-prefix=x"); private != want {
				t.Errorf("private: %v, want %v", private, want)
			}
		})
	}
}

func TestOptionsAreChecked(t *testing.T) {
	if o, err := (Options{}).withDefaults(); err != nil || o.FrameBytes == 0 || o.Frames == 0 || o.Ring == 0 {
		t.Fatalf("%+v %v", o, err)
	}
	for _, o := range []Options{{FrameBytes: 10}, {FrameBytes: 1 << 17}, {Frames: -1}, {Frames: 1 << 20}, {Ring: 1}, {Ring: 1 << 20}} {
		if _, err := o.withDefaults(); err == nil {
			t.Errorf("%+v passed", o)
		}
	}
}

func TestMemifArgs(t *testing.T) {
	m := Memif{Socket: "/tmp/x.sock", ID: 7, Secret: "s3cret"}
	got := memifArgs(Client, m, Options{FrameBytes: 2048, Ring: 100})
	if want := "role=client,id=7,socket=/tmp/x.sock,socket-abstract=no,secret=s3cret,bsize=2048,rsize=7"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// What a peer says goes into an argument string: nothing may be smuggled in.
func TestMemifIsChecked(t *testing.T) {
	if err := validMemif(Memif{Socket: "/tmp/x.sock", Secret: "s"}); err != nil {
		t.Error(err)
	}
	for _, m := range []Memif{
		{Socket: "", Secret: "s"}, {Socket: "x.sock", Secret: "s"}, {Socket: "/tmp/x,zero-copy=yes", Secret: "s"}, {Socket: "/tmp/x\x00y", Secret: "s"},
		{Socket: "/" + strings.Repeat("x", 107), Secret: "s"}, {Socket: "/tmp/x", Secret: ""}, {Socket: "/tmp/x", Secret: "s,id=0"}, {Socket: "/tmp/x", Secret: strings.Repeat("s", 24)},
	} {
		if validMemif(m) == nil {
			t.Errorf("%+v passed", m)
		}
	}
}

func TestLogWithoutUsage(t *testing.T) {
	const log = "EAL: core 0 unavailable\nEAL: invalid parameter for --lcores\n\nUsage: millrace [options]\n\nEAL common options:\n  -c COREMASK\nEAL Linux options:\n  --huge-dir\nEAL: FATAL: Invalid 'command line' arguments.\nlast\n"
	if got, want := oneLine(log), "EAL: core 0 unavailable; EAL: invalid parameter for --lcores; EAL: FATAL: Invalid 'command line' arguments.; last"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

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
			got := initArgs(tc.args, tc.cpus, tc.hugepages)
			if want := append([]string{"millrace"}, strings.Fields(tc.want)...); !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
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

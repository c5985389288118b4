package fleet

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/shadow"
)

func TestApply(t *testing.T) {
	const (
		meta  = `{"desired":{"state":{"timestamp":1700000000000}}}`
		delta = `{"type":"delta","timestamp":1700000000,"payload":{"state":{"state":"open"},"metadata":{"state":{"timestamp":1700000000000}},"version":%d,"timestamp":1700000000000}}`
	)
	written := func(version int64, tasks ...string) Shadow {
		return Shadow{
			Stored:       shadow.Stored{Desired: `{"state":"open"}`, Metadata: meta, Version: version, Timestamp: 1700000000000},
			AppliedTasks: tasks,
		}
	}
	var sixteen []string
	for i := range MaxAppliedTasks {
		sixteen = append(sixteen, fmt.Sprint("task-", i))
	}

	tests := map[string]struct {
		shadow     Shadow
		patch      string
		want       Applied
		wantReason string
	}{
		"first shadow": {
			patch: `{"state":"open"}`,
			want:  Applied{Shadow: written(1, "this"), Write: true, Delta: fmt.Appendf(nil, delta, 1)},
		},
		"values equal already: the version grows all the same": {
			shadow: written(4, "other"), patch: `{"state":"open"}`,
			want: Applied{Shadow: written(5, "other", "this"), Write: true, Delta: fmt.Appendf(nil, delta, 5)},
		},
		"resumed: nothing is written, the delta is there again": {
			shadow: written(5, "this", "other"), patch: `{"state":"closed"}`,
			want: Applied{Shadow: written(5, "this", "other"), Delta: fmt.Appendf(nil, delta, 5)},
		},
		"resumed, and the device has complied": {
			shadow: Shadow{Stored: shadow.Stored{Desired: `{"state":"open"}`, Reported: `{"state":"open"}`, Version: 6}, AppliedTasks: []string{"this"}},
			patch:  `{"state":"open"}`,
			want:   Applied{Shadow: Shadow{Stored: shadow.Stored{Desired: `{"state":"open"}`, Reported: `{"state":"open"}`, Version: 6}, AppliedTasks: []string{"this"}}},
		},
		"the oldest of sixteen tasks is forgotten": {
			shadow: written(20, sixteen...), patch: `{"state":"open"}`,
			want: Applied{Shadow: written(21, append(sixteen[1:len(sixteen):len(sixteen)], "this")...), Write: true, Delta: fmt.Appendf(nil, delta, 21)},
		},
		"too large": {
			shadow: Shadow{Stored: shadow.Stored{Desired: `{"a":"` + strings.Repeat("x", 16000) + `"}`}},
			patch:  `{"b":"` + strings.Repeat("x", 1000) + `"}`, wantReason: v1alpha1.ReasonShadowTooLarge,
		},
		"too deep": {
			shadow: Shadow{Stored: shadow.Stored{Desired: `{"a":{"b":{"c":{"d":{"e":{}}}}}}`}},
			patch:  `{"b":1}`, wantReason: v1alpha1.ReasonShadowTooDeep,
		},
		"stored shadow is no document": {
			shadow: Shadow{Stored: shadow.Stored{Reported: `open`}},
			patch:  `{"b":1}`, wantReason: v1alpha1.ReasonInvalidShadow,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			patch, err := shadow.ParseDesired(tt.patch)
			if err != nil {
				t.Fatal(err)
			}
			before := append([]string(nil), tt.shadow.AppliedTasks...)
			got, err := DesiredUpdate{TaskUID: "this", Patch: patch, Now: time.UnixMilli(1700000000000)}.Apply(tt.shadow)
			var reason string
			if deviceErr, ok := errors.AsType[*DeviceError](err); ok {
				reason = deviceErr.Reason
			} else if err != nil {
				t.Fatalf("error %v is no *DeviceError", err)
			}
			if reason != tt.wantReason {
				t.Fatalf("reason %q (error %v), want %q", reason, err, tt.wantReason)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("applied (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, append([]string(nil), tt.shadow.AppliedTasks...)); diff != "" {
				t.Errorf("the shadow that was read was changed (-want +got):\n%s", diff)
			}
		})
	}
}

package fleettest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
)

const (
	stamp = `{"timestamp":1700000000123}` // now
	old   = `{"timestamp":1600000000000}`
)

func delta(state, metadata string, version int64) string {
	return fmt.Sprintf(`{"type":"delta","timestamp":1700000000,"payload":{"state":%s,"metadata":%s,"version":%d,"timestamp":1700000000123}}`, state, metadata, version)
}

func (s *suite) applyMerge() {
	before := shadow.Stored{
		Reported:  `{"big":12345678901234567890.0,"state":"closed"}`,
		Desired:   `{"gone":1,"kept":[1],"nested":{"a":1,"b":2}}`,
		Metadata:  `{"reported":{"big":` + old + `,"state":` + old + `},"desired":{"gone":` + old + `,"kept":` + old + `,"nested":{"a":` + old + `,"b":` + old + `}}}`,
		Version:   7,
		Timestamp: 1600000000000,
	}
	complied := before
	complied.Reported = `{"kept":[1],"nested":{"a":1,"c":"<&>"},"state":"open"}`
	complied.Metadata = ``
	tests := []struct {
		device    Device
		patch     string
		want      fleet.Shadow
		wantDelta string
	}{
		{
			device: Device{Name: "empty"},
			patch:  `{"state":"open","big":12345678901234567890}`,
			want: fleet.Shadow{
				Stored:       shadow.Stored{Desired: `{"big":12345678901234567890,"state":"open"}`, Metadata: `{"desired":{"big":` + stamp + `,"state":` + stamp + `}}`, Version: 1, Timestamp: now.UnixMilli()},
				AppliedTasks: []string{"task"},
			},
			wantDelta: delta(`{"big":12345678901234567890,"state":"open"}`, `{"big":`+stamp+`,"state":`+stamp+`}`, 1),
		},
		{
			device: Device{Name: "full", Shadow: fleet.Shadow{Stored: before, AppliedTasks: []string{"other"}}},
			patch:  `{"state":"open","gone":null,"nested":{"b":null,"c":"<&>"},"big":12345678901234567890}`,
			want: fleet.Shadow{
				Stored: shadow.Stored{
					Reported: before.Reported,
					Desired:  `{"big":12345678901234567890,"kept":[1],"nested":{"a":1,"c":"<&>"},"state":"open"}`,
					Metadata: `{"reported":{"big":` + old + `,"state":` + old + `},"desired":{"big":` + stamp + `,"kept":` + old + `,"nested":{"a":` + old + `,"c":` + stamp + `},"state":` + stamp + `}}`,
					Version:  8, Timestamp: now.UnixMilli(),
				},
				AppliedTasks: []string{"other", "task"},
			},
			wantDelta: delta(`{"kept":[1],"nested":{"a":1,"c":"<&>"},"state":"open"}`, `{"kept":`+old+`,"nested":{"a":`+old+`,"c":`+stamp+`},"state":`+stamp+`}`, 8),
		},
		{
			device: Device{Name: "complied", Shadow: fleet.Shadow{Stored: complied}},
			patch:  `{"state":"open","gone":null,"nested":{"b":null,"c":"<&>"}}`,
			want: fleet.Shadow{
				Stored: shadow.Stored{
					Reported: complied.Reported,
					Desired:  `{"kept":[1],"nested":{"a":1,"c":"<&>"},"state":"open"}`,
					Metadata: `{"desired":{"nested":{"c":` + stamp + `},"state":` + stamp + `}}`,
					Version:  8, Timestamp: now.UnixMilli(),
				},
				AppliedTasks: []string{"task"},
				Acknowledged: 1,
			},
		},
		{
			device: Device{Name: "all-deleted", Shadow: fleet.Shadow{Stored: shadow.Stored{Desired: `{"a":1}`, Metadata: `{"desired":{"a":` + old + `}}`, Version: 1, Timestamp: 1600000000000}}},
			patch:  `{"a":null}`,
			want:   fleet.Shadow{Stored: shadow.Stored{Version: 2, Timestamp: now.UnixMilli()}, AppliedTasks: []string{"task"}, Acknowledged: 1},
		},
	}
	for _, tt := range tests {
		s.h.Create(s, s.product, tt.device)
	}
	s.synced()
	for _, tt := range tests {
		results := s.applyAll(s.update("task", tt.patch), tt.device.Name)
		if diff := cmp.Diff(tt.wantDelta, string(results[0].Delta)); diff != "" {
			s.Errorf("%s: delta (-want +got):\n%s", tt.device.Name, diff)
		}
		if tt.wantDelta == "" && results[0].Delta != nil {
			s.Errorf("%s: an empty delta that is not nil", tt.device.Name)
		}
		if diff := cmp.Diff(tt.want, s.h.Shadow(s, s.product, tt.device.Name), cmpopts.EquateEmpty()); diff != "" {
			s.Errorf("%s: shadow (-want +got):\n%s", tt.device.Name, diff)
		}
	}
	if got := s.store.ApplyDesired(s.ctx, s.product, s.update("task", `{}`), nil); len(got) != 0 {
		s.Errorf("%d results for no names", len(got))
	}
}

func (s *suite) applyOnce() {
	names := numbered("d", 50)
	s.create(named(names...)...)
	first := s.update("first", `{"state":"open"}`)
	s.applyAll(first, names...)
	s.h.Report(s, s.product, names[0], `{"state":"open"}`)       // complies
	s.h.Report(s, s.product, names[1], `{"state":"closed"}`)     // does not
	s.applyAll(s.update("second", `{"state":"ajar"}`), names[2]) // another task comes between

	again := s.applyAll(first, names...)
	for i, name := range names {
		wantVersion, wantDelta := int64(1), delta(`{"state":"open"}`, `{"state":`+stamp+`}`, 1)
		switch i {
		case 0:
			wantVersion, wantDelta = 2, ""
		case 1:
			wantVersion, wantDelta = 2, delta(`{"state":"open"}`, `{"state":`+stamp+`}`, 2)
		case 2:
			wantVersion, wantDelta = 2, delta(`{"state":"ajar"}`, `{"state":`+stamp+`}`, 2)
		}
		if got := s.h.Shadow(s, s.product, name).Version; got != wantVersion {
			s.Errorf("%s: version %d after the task was resumed, want %d", name, got, wantVersion)
		}
		if got := withoutDocumentTime(string(again[i].Delta)); got != withoutDocumentTime(wantDelta) {
			s.Errorf("%s: delta of the resumed task:\n%s\nwant\n%s", name, got, wantDelta)
		}
	}

	// The last sixteen tasks are remembered, the one before them is not.
	for i := range fleet.MaxAppliedTasks {
		s.applyAll(s.update(fmt.Sprint("later-", i), `{"state":"open"}`), names[3])
	}
	s.applyAll(s.update("later-0", `{"state":"open"}`), names[3])
	got := s.h.Shadow(s, s.product, names[3])
	if want := int64(1 + fleet.MaxAppliedTasks); got.Version != want || len(got.AppliedTasks) != fleet.MaxAppliedTasks {
		s.Errorf("version %d with %d tasks remembered, want %d with %d", got.Version, len(got.AppliedTasks), want, fleet.MaxAppliedTasks)
	}
}

// withoutDocumentTime cuts the timestamp of the document off a delta message: a
// report sets it to the time of the harness.
func withoutDocumentTime(message string) string {
	if i := strings.LastIndex(message, `,"timestamp":`); i >= 0 {
		return message[:i]
	}
	return message
}

func (s *suite) applyFailures() {
	long := strings.Repeat("x", 16000)
	s.create(
		Device{Name: "corrupt", Shadow: fleet.Shadow{Stored: shadow.Stored{Desired: `open`, Version: 3}}},
		Device{Name: "deep", Shadow: fleet.Shadow{Stored: shadow.Stored{Desired: `{"a":{"b":{"c":{"d":{"e":[1]}}}}}`, Version: 3}}},
		Device{Name: "good"},
		Device{Name: "large", Shadow: fleet.Shadow{Stored: shadow.Stored{Desired: `{"a":"` + long + `"}`, Version: 3}}},
	)
	names := []string{"large", "good", "deep", "no-such-device", "corrupt"}
	results := s.apply(s.update("task", `{"b":"`+strings.Repeat("y", 1000)+`"}`), names...)
	want := []string{v1alpha1.ReasonShadowTooLarge, "", v1alpha1.ReasonShadowTooDeep, "gone", v1alpha1.ReasonInvalidShadow}
	for i, result := range results {
		got := ""
		if deviceErr, ok := errors.AsType[*fleet.DeviceError](result.Err); ok {
			got = deviceErr.Reason
			if strings.Contains(deviceErr.Message, "xxx") || strings.Contains(deviceErr.Message, "yyy") {
				s.Errorf("%s: the message holds values: %.100s", names[i], deviceErr.Message)
			}
		} else if errors.Is(result.Err, fleet.ErrDeviceGone) {
			got = "gone"
		}
		if got != want[i] {
			s.Errorf("%s: %q (error %v), want %q", names[i], got, result.Err, want[i])
		}
		if (result.Delta != nil) != (want[i] == "") {
			s.Errorf("%s: delta %.100s", names[i], result.Delta)
		}
	}
	for _, name := range []string{"large", "deep", "corrupt"} {
		if got := s.h.Shadow(s, s.product, name); got.Version != 3 || len(got.AppliedTasks) != 0 {
			s.Errorf("%s: version %d, tasks %q: changed by an update that failed", name, got.Version, got.AppliedTasks)
		}
	}
}

func (s *suite) applyGone() {
	s.create(named("a", "b", "c")...)
	s.h.Delete(s, s.product, "b") // no Sync: the store may not know yet
	results := s.apply(s.update("task", `{"n":1}`), "a", "b", "c")
	if !errors.Is(results[1].Err, fleet.ErrDeviceGone) {
		s.Errorf("deleted device: error %v, want ErrDeviceGone", results[1].Err)
	}
	if results[0].Err != nil || results[2].Err != nil {
		s.Errorf("the others: errors %v and %v", results[0].Err, results[2].Err)
	}

	s.create(Device{Name: "b"})
	s.applyAll(s.update("task", `{"n":1}`), "b")
	if got := s.h.Shadow(s, s.product, "b").Version; got != 1 {
		s.Errorf("made anew: version %d, want 1", got)
	}
}

// applyConcurrently lets tasks and a device write the same shadows.
func (s *suite) applyConcurrently() {
	const tasks, reports = 8, 20
	names := numbered("d", 3)
	s.create(named(names...)...)
	var writers sync.WaitGroup
	for i := range tasks {
		u := s.update(fmt.Sprint("task-", i), fmt.Sprintf(`{"field-%d":%d}`, i, i))
		writers.Go(func() { s.applyAll(u, names...) })
		writers.Go(func() { s.applyAll(u, names...) }) // and once more, as two executors would
	}
	writers.Go(func() {
		for i := range reports {
			s.h.Report(s, s.product, names[0], fmt.Sprintf(`{"count":%d}`, i))
		}
	})
	writers.Wait()

	wantFields := shadow.Object{}
	for i := range tasks {
		wantFields[fmt.Sprint("field-", i)] = s.patch(fmt.Sprintf(`{"n":%d}`, i))["n"]
	}
	for i, name := range names {
		got := s.h.Shadow(s, s.product, name)
		doc, err := shadow.Parse(got.Stored)
		if err != nil {
			s.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(wantFields, doc.Desired); diff != "" {
			s.Errorf("%s: desired (-want +got):\n%s", name, diff)
		}
		wantVersion, wantReported := int64(tasks), ""
		if i == 0 {
			wantVersion, wantReported = tasks+reports, fmt.Sprintf(`{"count":%d}`, reports-1)
		}
		if got.Version != wantVersion || got.Reported != wantReported {
			s.Errorf("%s: version %d, reported %s; want %d, %s", name, got.Version, got.Reported, wantVersion, wantReported)
		}
	}
}

func (s *suite) applyEnded() {
	s.create(named("a", "b")...)
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	for i, result := range s.store.ApplyDesired(ctx, s.product, s.update("task", `{"n":1}`), []string{"a", "b"}) {
		if !errors.Is(result.Err, context.Canceled) {
			s.Errorf("result %d: error %v, want that of the context", i, result.Err)
		}
	}
	if got := s.h.Shadow(s, s.product, "a").Version; got != 0 {
		s.Errorf("version %d, want 0", got)
	}
}

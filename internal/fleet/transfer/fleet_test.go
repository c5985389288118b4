package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
	"batchtask.dev/operator/internal/fleet/transfer/devicefile"
	"batchtask.dev/operator/internal/shadow"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var now = time.UnixMilli(1_700_000_000_000)

// eachFleet runs a test over an empty fleet of each kind. again returns the same fleet
// as another run of the program sees it.
func eachFleet(t *testing.T, test func(t *testing.T, again func() Fleet)) {
	t.Run("Kubernetes", func(t *testing.T) {
		env := testenv.Start(t)
		p := fleet.Product{Namespace: env.Namespace(t), ProductID: testobj.ProductID}
		test(t, func() Fleet { return NewInKubernetes(env.Client, p) })
	})
	t.Run("Postgres", func(t *testing.T) {
		store, err := postgres.Open(t.Context(), postgres.Options{URL: pgtest.Start(t).Database(t), ConnectTimeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(store.Close)
		test(t, func() Fleet {
			return InPostgres{Store: store, Product: fleet.Product{Namespace: "n", ProductID: testobj.ProductID}}
		})
	})
}

// imported imports a file and returns the summary and the bad lines.
func imported(t *testing.T, into Fleet, text string) (Summary, []string) {
	t.Helper()
	r, err := devicefile.NewReader(strings.NewReader(text), "", now)
	if err != nil {
		t.Fatal(err)
	}
	var bad []string
	done, err := Import(t.Context(), r, into, func(e *devicefile.LineError) { bad = append(bad, e.Error()) }, func(Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	if done.Bad != int64(len(bad)) || done.Bytes != int64(len(text)) {
		t.Errorf("%d bad lines and %d bytes are counted; %d and %d were", done.Bad, done.Bytes, len(bad), len(text))
	}
	return done.Summary, bad
}

// exported exports a fleet as CSV with shadows.
func exported(t *testing.T, from Fleet) string {
	t.Helper()
	var b strings.Builder
	w, err := devicefile.NewWriter(&b, devicefile.CSV, true)
	if err != nil {
		t.Fatal(err)
	}
	for d, err := range from.Export(t.Context(), true) {
		if err == nil {
			err = w.Write(d)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestFleets(t *testing.T) {
	const head = "deviceName,disabled,version,reported,desired\n"
	steps := []struct {
		name, file string
		want       Summary
		wantBad    []string
		after      string
	}{
		{
			name: "new ones, in the order of bytes", file: head + "b,true,,,\nA:1,,5,\"{\"\"n\"\":1.0}\",\"{\"\"s\"\":\"\"on\"\"}\"\nа,,,,\nc_-,,,,{}\n",
			want: Summary{Added: 3}, wantBad: []string{"line 4: deviceName: a name is 1 to 48 letters, digits, ':', '_' and '-'"},
			after: head + "A:1,false,5,\"{\"\"n\"\":1.0}\",\"{\"\"s\"\":\"\"on\"\"}\"\nb,true,,,\nc_-,false,1,,\n",
		},
		{
			name: "what an export wrote", file: head + "A:1,false,5,\"{\"\"n\"\":1.0}\",\"{\"\"s\"\":\"\"on\"\"}\"\nb,true,,,\nc_-,false,1,,\n",
			want:  Summary{Unchanged: 3},
			after: head + "A:1,false,5,\"{\"\"n\"\":1.0}\",\"{\"\"s\"\":\"\"on\"\"}\"\nb,true,,,\nc_-,false,1,,\n",
		},
		{
			name: "newer and older shadows, enabled again, and a name that differs in case", file: head + "A:1,,4,{},\nb,,2,\"{\"\"n\"\":2}\",\na:1,true,,,\nc_-,,2,,\n",
			want:  Summary{Added: 1, Updated: 2, Unchanged: 1},
			after: head + "A:1,false,5,\"{\"\"n\"\":1.0}\",\"{\"\"s\"\":\"\"on\"\"}\"\na:1,true,,,\nb,false,2,\"{\"\"n\"\":2}\",\nc_-,false,2,,\n",
		},
	}
	eachFleet(t, func(t *testing.T, again func() Fleet) {
		before := head
		for _, step := range steps {
			preview, bad := imported(t, Check{again()}, step.file)
			if diff := cmp.Diff(step.want, preview); diff != "" || len(bad) > len(step.wantBad) {
				t.Errorf("%s: preview, with the bad lines %q (-want +got):\n%s", step.name, bad, diff)
			}
			if diff := cmp.Diff(before, exported(t, again())); diff != "" {
				t.Errorf("%s: export after the preview (-want +got):\n%s", step.name, diff)
			}
			before = step.after
			sum, bad := imported(t, again(), step.file)
			if diff := cmp.Diff(step.want, sum); diff != "" {
				t.Errorf("%s: summary (-want +got):\n%s", step.name, diff)
			}
			if diff := cmp.Diff(step.wantBad, bad); diff != "" {
				t.Errorf("%s: bad lines (-want +got):\n%s", step.name, diff)
			}
			if diff := cmp.Diff(step.after, exported(t, again())); diff != "" {
				t.Errorf("%s: export (-want +got):\n%s", step.name, diff)
			}
		}
		var listed []devicefile.Device
		for d, err := range again().Export(t.Context(), false) {
			if err != nil {
				t.Fatal(err)
			}
			if (d.Shadow.Timestamp == now.UnixMilli()) != (d.Shadow.Version > 0) {
				t.Errorf("device %q has timestamp %d, want that of the import", d.Name, d.Shadow.Timestamp)
			}
			d.Shadow.Timestamp = 0
			listed = append(listed, d)
		}
		wantListed := []devicefile.Device{
			{Name: "A:1", Shadow: shadow.Stored{Version: 5}},
			{Name: "a:1", Disabled: true},
			{Name: "b", Shadow: shadow.Stored{Version: 2}},
			{Name: "c_-", Shadow: shadow.Stored{Version: 2}},
		}
		if diff := cmp.Diff(wantListed, listed); diff != "" {
			t.Errorf("without shadows (-want +got):\n%s", diff)
		}
		got, err := again().Get(t.Context(), "a:1")
		if want := (devicefile.Device{Name: "a:1", Disabled: true}); err != nil || got != want {
			t.Errorf("device %+v, %v; want %+v", got, err, want)
		}
		for _, name := range []string{"gone", "no name,", ""} {
			if _, err := again().Get(t.Context(), name); !errors.Is(err, fleet.ErrDeviceGone) {
				t.Errorf("device %q: error %v, want %v", name, err, fleet.ErrDeviceGone)
			}
		}
	})
}

// Names that differ only in letters that objects do not have are different objects.
func TestObjectName(t *testing.T) {
	seen := map[string]string{}
	for _, device := range []string{"a", "A", "_a_", ":", "-", "a:b", "a_b", "a-b", "a--b", strings.Repeat("Z", 48)} {
		for _, id := range []string{"P", "p"} {
			name := ObjectName(id, device)
			if faults := validation.IsDNS1123Label(name); len(faults) > 0 {
				t.Errorf("device %s: %q is no name: %v", device, name, faults)
			}
			if before, twice := seen[name]; twice {
				t.Errorf("devices %s/%s and %s are both %q", id, device, before, name)
			}
			seen[name] = id + "/" + device
		}
	}
	// Objects that exist depend on it.
	if got, want := ObjectName("ABCDE12345", "Front_Door"), "front-door-"; !strings.HasPrefix(got, want) || got != ObjectName("ABCDE12345", "Front_Door") {
		t.Errorf("the name is %q, want %s and ten digits, always the same", got, want)
	}
}

// Objects that somebody made with names of their own are the devices that they say.
func TestObjectsOfOthers(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	own := testobj.Device("front-door").In(namespace).Obj()
	other := testobj.Device("taken").In(namespace).Obj()
	other.Name = ObjectName(testobj.ProductID, "wanted")
	elsewhere := testobj.Device("elsewhere").In(namespace).Product("OTHER").Obj()
	for _, d := range []*v1alpha1.Device{own, other, elsewhere} {
		if err := env.Client.Create(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	p := fleet.Product{Namespace: namespace, ProductID: testobj.ProductID}
	sum, bad := imported(t, NewInKubernetes(env.Client, p), "deviceName,disabled\nfront-door,true\nwanted,\ntaken,\nelsewhere,\n")
	if diff := cmp.Diff(Summary{Added: 1, Updated: 1, Unchanged: 1}, sum); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
	if len(bad) != 1 || !strings.HasPrefix(bad[0], `line 3: device "wanted": `) || !strings.Contains(bad[0], "spec.deviceName") {
		t.Errorf("bad lines %q, want that of wanted, whose object is another device", bad)
	}
	var list v1alpha1.DeviceList
	if err := env.Client.List(t.Context(), &list, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, d := range list.Items {
		got[d.Name+" "+d.Spec.ProductID+"/"+d.Spec.DeviceName] = d.Spec.Disabled
	}
	want := map[string]bool{
		"front-door ABCDE12345/front-door": true, other.Name + " ABCDE12345/taken": false, "elsewhere OTHER/elsewhere": false,
		ObjectName(testobj.ProductID, "elsewhere") + " ABCDE12345/elsewhere": false,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
}

// Two imports of one file at once: each device is counted once as what became of it.
func TestImportsAtOnce(t *testing.T) {
	const n = 300
	eachFleet(t, func(t *testing.T, again func() Fleet) {
		for _, step := range []struct {
			name, disabled string
			total          func(a, b Summary) bool
		}{
			{"added", "", func(a, b Summary) bool { return a.Added+b.Added == n && a.Updated+b.Updated == 0 }},
			{"updated", "true", func(a, b Summary) bool { return a.Added+b.Added == 0 && a.Updated+b.Updated == n }},
		} {
			var devices []devicefile.Device
			for i := range n {
				devices = append(devices, devicefile.Device{Name: fmt.Sprintf("device-%03d", i), Disabled: step.disabled != ""})
			}
			var sums [2]Summary
			var importers sync.WaitGroup
			fleets := []Fleet{again(), again()}
			for i, into := range fleets { // both have looked before either writes
				if _, err := into.Preview(t.Context(), devices); err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					continue
				}
				for i, into := range fleets {
					importers.Go(func() {
						sum, err := into.Import(t.Context(), devices, func(i int, err error) { t.Errorf("%s: %v", devices[i].Name, err) })
						if err != nil {
							t.Error(err)
						}
						sums[i] = sum
					})
				}
			}
			importers.Wait()
			for _, sum := range sums {
				if sum.Added+sum.Updated+sum.Unchanged != n || !step.total(sums[0], sums[1]) {
					t.Errorf("%s: %+v and %+v, want %d %s together and the others unchanged", step.name, sums[0], sums[1], n, step.name)
				}
			}
		}
	})
}

// What is there when the devices are listed may be another thing when they are written.
func TestImportMeetsOthers(t *testing.T) {
	env := testenv.Start(t)
	p := fleet.Product{Namespace: env.Namespace(t), ProductID: testobj.ProductID}
	for _, name := range []string{"deleted", "deleted-of-others", "replaced", "changed", "remembers"} {
		d := testobj.Device(name).In(p.Namespace).Obj()
		if name == "deleted" {
			d.Name = ObjectName(p.ProductID, name)
		}
		if err := env.Client.Create(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	into := NewInKubernetes(env.Client, p)
	file := []devicefile.Device{
		{Name: "deleted", Disabled: true},
		{Name: "deleted-of-others", Shadow: shadow.Stored{Reported: `{"a":1}`, Version: 5}},
		{Name: "replaced", Disabled: true},
		{Name: "changed", Disabled: true},
		{Name: "made"},
		{Name: "remembers", Shadow: shadow.Stored{Reported: `{"a":1}`, Version: 5}},
	}
	if sum, err := into.Preview(t.Context(), file); err != nil || sum != (Summary{Added: 1, Updated: 5}) {
		t.Fatalf("preview: %+v, error %v", sum, err)
	}
	do := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	object := func(name string) *v1alpha1.Device {
		d := testobj.Device(name).In(p.Namespace).Obj()
		do(env.Client.Get(t.Context(), client.ObjectKeyFromObject(d), d))
		return d
	}
	gone := testobj.Device("deleted").In(p.Namespace).Obj()
	gone.Name = ObjectName(p.ProductID, "deleted")
	do(env.Client.Delete(t.Context(), gone), env.Client.Delete(t.Context(), object("deleted-of-others")), env.Client.Delete(t.Context(), object("replaced")))
	other := testobj.Device("another").In(p.Namespace).Obj()
	other.Name = "replaced"
	made := testobj.Device("made").In(p.Namespace).Obj()
	made.Name = ObjectName(p.ProductID, "made")
	do(env.Client.Create(t.Context(), other), env.Client.Create(t.Context(), made))
	changed, remembers := object("changed"), object("remembers")
	changed.Spec.Disabled = true
	remembers.Status.Shadow = &v1alpha1.DeviceShadow{Desired: `{"s":1}`, Version: 3, AppliedTasks: []string{"x", "y"}, Acknowledged: 1}
	do(env.Client.Update(t.Context(), changed), env.Client.Status().Update(t.Context(), remembers))

	var bad []string
	sum, err := into.Import(t.Context(), file, func(_ int, err error) { bad = append(bad, err.Error()) })
	if want := (Summary{Added: 2, Updated: 1, Unchanged: 2}); err != nil || sum != want {
		t.Errorf("%+v, error %v; want %+v", sum, err, want)
	}
	if len(bad) != 1 || !strings.Contains(bad[0], `device "replaced": the object "replaced" is another device`) || !strings.Contains(bad[0], `spec.deviceName "another"`) {
		t.Errorf("refused: %q, want the one whose object is another device now", bad)
	}
	for _, want := range file {
		if want.Name == "replaced" {
			continue
		}
		if got, err := again(into).Get(t.Context(), want.Name); err != nil || got != want {
			t.Errorf("device %+v, error %v; want %+v", got, err, want)
		}
	}
	if s := object("remembers").Status.Shadow; !cmp.Equal(s.AppliedTasks, []string{"x", "y"}) || s.Acknowledged != 1 {
		t.Errorf("the shadow remembers %q, %d of them acknowledged; want x and y, one acknowledged", s.AppliedTasks, s.Acknowledged)
	}
}

// again returns the same fleet as another run of the program sees it.
func again(f *InKubernetes) Fleet { return NewInKubernetes(f.client, f.product) }

// An import that ends early says how far it is sure to have come.
func TestImportEndsEarly(t *testing.T) {
	own := errors.New("the disk is gone")
	eachFleet(t, func(t *testing.T, again func() Fleet) {
		n := again().Batch()
		var text strings.Builder
		text.WriteString("deviceName\n")
		for i := range n + 10 {
			fmt.Fprintf(&text, "device-%06d\n", i)
		}
		r, err := devicefile.NewReader(io.MultiReader(strings.NewReader(text.String()), failing{own}), "", now)
		if err != nil {
			t.Fatal(err)
		}
		var seen []Progress
		done, err := Import(t.Context(), r, again(), func(e *devicefile.LineError) { t.Error(e) }, func(p Progress) { seen = append(seen, p) })
		want := Progress{Summary: Summary{Added: int64(n)}, Line: int64(n) + 1, Bytes: int64(len("deviceName\n") + n*len("device-000000\n"))}
		if diff := cmp.Diff(want, done); !errors.Is(err, own) || diff != "" {
			t.Errorf("error %v, progress (-want +got):\n%s", err, diff)
		}
		if diff := cmp.Diff([]Progress{want}, seen); diff != "" {
			t.Errorf("progress on the way (-want +got):\n%s", diff)
		}
		if sum, _ := imported(t, again(), text.String()); sum != (Summary{Added: 10, Unchanged: int64(n)}) {
			t.Errorf("the rest: %+v, want 10 added", sum)
		}
	})
}

// While a batch is written the next one is read.
func TestImportReadsAhead(t *testing.T) {
	second, writer := io.Pipe()
	r, err := devicefile.NewReader(io.MultiReader(strings.NewReader("deviceName\na\nb,\n"), second), "", now)
	if err != nil {
		t.Fatal(err)
	}
	var bad []string
	into := &meeting{wait: func() {
		// The pipe takes it when somebody reads.
		defer time.AfterFunc(time.Minute, func() { _ = second.CloseWithError(errors.New("nobody reads ahead")) }).Stop()
		if _, err := io.WriteString(writer, "c\nd\n"); err != nil {
			t.Error(err)
		}
		_ = writer.Close()
	}}
	done, err := Import(t.Context(), r, into, func(e *devicefile.LineError) { bad = append(bad, e.Error()) }, func(p Progress) {
		if p.Added == 1 && (p.Line != 3 || p.Bad != 1) {
			t.Errorf("after the first batch: %+v, want line 3 with 1 bad line", p)
		}
	})
	want := Progress{Summary: Summary{Added: 3}, Bad: 1, Line: 5, Bytes: int64(len("deviceName\na\nb,\nc\nd\n"))}
	if diff := cmp.Diff(want, done); err != nil || diff != "" {
		t.Errorf("error %v, progress (-want +got):\n%s", err, diff)
	}
	if want := []string{"line 3: it has 2 fields, and the header has 1; quote fields that hold a comma"}; !cmp.Equal(bad, want) {
		t.Errorf("bad lines %q, want %q", bad, want)
	}
}

// meeting is a fleet whose first Import waits.
type meeting struct {
	Fleet
	wait func()
}

func (*meeting) Batch() int { return 2 }

func (m *meeting) Import(_ context.Context, devices []devicefile.Device, _ func(int, error)) (Summary, error) {
	if m.wait != nil {
		m.wait()
		m.wait = nil
	}
	return Summary{Added: int64(len(devices))}, nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

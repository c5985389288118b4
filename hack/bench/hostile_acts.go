package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	registrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
	"batchtask.dev/operator/internal/qcloud"
	"batchtask.dev/operator/internal/shadow"
)

// acts are all that the hostile tenant does, at once. What it does not do: copy a secretId or
// claim the ID of the victim's product, which are told from a single request; and stop or
// crash processes of the operator, which a tenant cannot.
func (t *hostileTenant) acts() []act {
	return []act{
		{"rows renamed, by a statement and by a trigger, during UpdateShadow", time.Second, t.renameRows},
		{"DATABASE_URLs with pool settings and files, of silent ports and of a server with messages of 900 MiB", time.Second, t.useURL},
		{"tasks and dry runs with costly filters", 250 * time.Millisecond, t.filterDevices},
		{"tasks whose messages the broker never acknowledges", 5 * time.Second, t.publishTo(nsSilent, silentProduct, 20*time.Second)},
		{"tasks over one device at whose messages the broker hangs up", 200 * time.Millisecond, t.publishTo(nsHangUp, hangUpProduct, 2*time.Second)},
		{"forged AdmissionReviews, of the victim's namespace too", 50 * time.Millisecond, t.forgeReview},
		{"ListTasks over finished tasks of 16 KiB", 11 * time.Millisecond, t.listTasks},
		{"GetDeviceShadow over a database that has stopped", 100 * time.Millisecond, t.getShadow},
		{"devices of a database that has stopped", 10 * time.Millisecond, t.speak},
		{"UpdateShadow over a database that has stopped", 2 * time.Second, t.updateAway},
		{"signed bodies full of nodes", 125 * time.Millisecond, t.sendBody},
		{"calls with forged signatures of the victim's SecretId", 50 * time.Millisecond, t.forgeCall},
	}
}

// either returns a if hostile, else b.
func either[T any](hostile bool, a, b T) T {
	if hostile {
		return a
	}
	return b
}

func (t *hostileTenant) updateTask(namespace, product string) *v1alpha1.BatchTask {
	task := newTask(namespace, t.name("update"), product, ".*")
	task.Spec.TaskType = v1alpha1.TaskTypeUpdateShadow
	task.Spec.Tasks = v1alpha1.TaskDetails{UpdateShadowTask: &v1alpha1.UpdateShadowTask{Desired: fmt.Sprintf(`{"n":%d}`, t.made.Load())}}
	return task
}

func (t *hostileTenant) renameRows(ctx context.Context, _ int, hostile bool) error {
	task := t.updateTask(nsRename, renameProduct)
	if err := t.env.Client.Create(ctx, task); err != nil {
		return err
	}
	for range 10 {
		t.connMu.Lock()
		// A statement that is given up closes the connection.
		_, err := t.conn.Exec(context.WithoutCancel(ctx), `UPDATE batchtask_device SET device_name = `+either(hostile, `md5(random()::text)`, `device_name`)+
			` WHERE product_id = '`+renameProduct+`' AND random() < 0.2`)
		t.connMu.Unlock()
		if err != nil || pause(ctx, 100*time.Millisecond) != nil {
			break
		}
	}
	_ = pause(ctx, 4*time.Second)
	return client.IgnoreNotFound(t.env.Client.Delete(context.WithoutCancel(ctx), task))
}

func (t *hostileTenant) useURL(ctx context.Context, n int, hostile bool) error {
	id := fmt.Sprintf("HURL%04d", n%64)
	if err := makeTenantDatabase(ctx, t.env, nsURL, id, either(hostile, t.urls[n%len(t.urls)], t.url)); err != nil {
		return err
	}
	_ = pause(ctx, actTime)
	kept := context.WithoutCancel(ctx)
	product := namedProduct(nsURL, id)
	secret := newSecret(nsURL, product.Name)
	return errors.Join(t.env.Client.Delete(kept, product), t.env.Client.Delete(kept, secret))
}

func (t *hostileTenant) filterDevices(ctx context.Context, n int, hostile bool) error {
	filters := []string{
		strings.Repeat("(.?.?){500}", 93), "(" + strings.Repeat("(.?", 10) + strings.Repeat(")", 10) + "){100}!",
		strings.Repeat("(a|b|.?)", 120) + "!", "(.{0,40}){20}!", strings.Repeat(".?", 200) + strings.Repeat("o", 200),
	}
	task := newTask(nsFilter, t.name("filter"), filterProduct, either(hostile, filters[n/2%len(filters)], "^door-.*$"))
	if n%2 == 0 {
		err := t.env.Client.Create(ctx, task, client.DryRunAll)
		return err
	}
	return t.create(ctx, task, 3*time.Second)
}

func (t *hostileTenant) publishTo(namespace, product string, keep time.Duration) func(context.Context, int, bool) error {
	return func(ctx context.Context, _ int, _ bool) error { // the broker is what is hostile
		return t.create(ctx, newTask(namespace, t.name("publish"), product, ".*"), keep)
	}
}

func (t *hostileTenant) updateAway(ctx context.Context, _ int, _ bool) error {
	return t.create(ctx, t.updateTask(nsAway, awayProduct), 10*time.Second)
}

func (t *hostileTenant) listTasks(ctx context.Context, _ int, hostile bool) error {
	_, err := callFront(ctx, t.env.APIURL, either(hostile, nsList, nsQuiet), "key", listOfTasks)
	return err
}

func (t *hostileTenant) getShadow(ctx context.Context, n int, _ bool) error {
	_, err := callFront(ctx, t.env.APIURL, nsAway, "key", map[string]string{
		"Action": qcloud.ActionGetDeviceShadow, "productID": awayProduct, "deviceName": fmt.Sprintf("door-%07d", n%awayRows),
	})
	return err
}

// speak sends what a device sends; nobody waits for the answer.
func (t *hostileTenant) speak(_ context.Context, n int, _ bool) error {
	topic := fmt.Sprintf("%s%s/door-%07d", shadow.OperationPrefix, awayProduct, n%awayRows)
	t.devices.Publish(topic, 0, false, gets.message(n))
	return nil
}

// bodies are JSON of calls: nodes that take much more memory than bytes.
type bodies struct{ large, small, harmless []byte }

func newBodies() bodies {
	fill := func(bytes int) []byte {
		const node = `{"":0}`
		return []byte("[" + strings.Repeat(node+",", bytes/(len(node)+1)-1) + node + "]")
	}
	return bodies{large: fill(1 << 20), small: fill(250 << 10), harmless: []byte(`{"Offset":0,"Limit":10}`)}
}

func (t *hostileTenant) sendBody(ctx context.Context, n int, hostile bool) error {
	body := either(hostile, either(n%2 == 0, t.bodies.large, t.bodies.small), t.bodies.harmless)
	return t.callTC3(ctx, nsQuiet, "key", body)
}

func (t *hostileTenant) forgeCall(ctx context.Context, _ int, hostile bool) error {
	if hostile {
		return t.callTC3(ctx, t.env.SecretID, "another", append([]byte(`{"Offset":0}`), bytes.Repeat([]byte(" "), 64<<10)...))
	}
	return t.callTC3(ctx, nsReview, "key", t.bodies.harmless)
}

// callTC3 makes a call of the newer version of the API.
func (t *hostileTenant) callTC3(ctx context.Context, secretID, secretKey string, body []byte) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, t.env.APIURL+qcloud.V3.Path(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("X-TC-Action", qcloud.ActionDescribeTasks)
	request.Header.Set("X-TC-Version", qcloud.VersionV3)
	request.Header.Set("X-TC-Timestamp", strconv.FormatInt(time.Now().Unix(), 10))
	if err := qcloud.AuthorizeTC3(request, body, "iotcloud", secretID, secretKey); err != nil {
		return err
	}
	response, err := hostileClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err == nil && bytes.Contains(text, []byte(`"Error"`)) {
		err = fmt.Errorf("the HTTP front answers %.200s", text)
	}
	return err
}

// reviewer calls the webhook as anybody can who reaches its port.
type reviewer struct {
	url    string
	client *http.Client
}

func newReviewer(ctx context.Context, env *localenv.Env) (*reviewer, error) {
	var all registrationv1.ValidatingWebhookConfigurationList
	if err := env.Client.List(ctx, &all); err != nil {
		return nil, fmt.Errorf("look for the webhook: %w", err)
	}
	for _, configuration := range all.Items {
		for _, hook := range configuration.Webhooks {
			if url := hook.ClientConfig.URL; url != nil {
				roots := x509.NewCertPool()
				roots.AppendCertsFromPEM(hook.ClientConfig.CABundle)
				return &reviewer{url: *url, client: &http.Client{
					Timeout:   actTime,
					Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: actsAtOnce},
				}}, nil
			}
		}
	}
	return nil, errors.New("there is no webhook with a URL")
}

func (t *hostileTenant) forgeReview(ctx context.Context, n int, hostile bool) error {
	task := newTask(nsReview, t.name("forged"), reviewProduct, "^door-.*$")
	if hostile {
		// Of the victim's namespace: tasks that nobody creates, which take its slots, and filters
		// that are asked about its devices.
		task.Namespace, task.Spec.ProductID = t.env.Namespace, productID
		if n%2 == 0 {
			task.Spec.DeviceNameFilter = strings.Repeat("(.?.?){500}", 93)
		}
	}
	task.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "BatchTask"}
	object, err := json.Marshal(task)
	if err != nil {
		return err
	}
	kind := metav1.GroupVersionKind{Group: v1alpha1.GroupVersion.Group, Version: v1alpha1.GroupVersion.Version, Kind: "BatchTask"}
	resource := metav1.GroupVersionResource{Group: kind.Group, Version: kind.Version, Resource: "batchtasks"}
	review, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: types.UID(task.Name), Kind: kind, Resource: resource, RequestKind: &kind, RequestResource: &resource,
			Name: task.Name, Namespace: task.Namespace, Operation: admissionv1.Create,
			Object: runtime.RawExtension{Raw: object}, DryRun: ptr.To(!hostile || n%4 == 0),
		},
	})
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, t.review.url, bytes.NewReader(review))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := t.review.client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err == nil && !bytes.Contains(text, []byte(`"allowed":true`)) {
		err = fmt.Errorf("the webhook answers %s %.300s", response.Status, text)
	}
	return err
}

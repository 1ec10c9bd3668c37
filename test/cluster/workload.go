package cluster

import (
	"encoding/json"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Probe is a part of a container in YAML: its pod is ready when its server answers, as those of
// [Web] are. Without one a pod is ready when its program has been started.
const Probe = "readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 10}"

// Web is the manifest of a Deployment, called web, of pods that run test/web and are
// ready when that answers. A ConfigMap, if settings names one, is at /settings in them.
func Web(replicas int32, settings string) string {
	labels := map[string]string{"app": "web"}
	pod := corev1.PodSpec{
		TerminationGracePeriodSeconds: new(int64(1)),
		Containers: []corev1.Container{{
			Name: "web", Image: "k3s9p.local/web:1", ImagePullPolicy: corev1.PullNever,
			ReadinessProbe: &corev1.Probe{
				ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080)}},
				PeriodSeconds: 1, TimeoutSeconds: 10, // on a busy machine an answer takes its time
			},
		}},
	}
	if settings != "" {
		pod.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "settings", MountPath: "/settings"}}
		source := &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: settings}}
		pod.Volumes = []corev1.Volume{{Name: "settings", VolumeSource: corev1.VolumeSource{ConfigMap: source}}}
	}
	data, err := json.Marshal(appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod},
		},
	})
	if err != nil {
		panic(err) // of a value that is made here
	}
	return string(data)
}
